"""The command that pre-trains a model on this machine: the warm start of a run.

Decides nothing; `barnraise/pretrain/warm_start.py` does.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from barnraise.cli.options import MOST_SEED, Json, number, one_of
from barnraise.cli.output import ProgressLine, documents_told, print_json, print_pairs, say_note
from moe.presets import PRESETS
from protocol.recipe import OPTIMIZERS

if TYPE_CHECKING:
    import torch

REPORT_EVERY_S = 1.0
_MULTIPLY = ("auto", "fp32", "bf16")


def pretrain(
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint; new, or empty.")],
    data: Annotated[str, typer.Option(help="A prepared dataset, or a source: folder, file, stdlib, datasets:NAME.")],
    preset: Annotated[str, typer.Option(help=f"{one_of(PRESETS)}.")] = "tiny",
    checkpoint: Annotated[Path | None, typer.Option(help="A Hugging Face folder to go on with.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 200,
    batch: Annotated[int, typer.Option(min=1, help="Sequences a step.")] = 64,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Sequences in memory at a time.")] = None,
    sequence_length: Annotated[int, typer.Option(min=1, help="Tokens a sequence.")] = 128,
    optimizer: Annotated[str | None, typer.Option(help=f"{one_of(OPTIMIZERS)}; a run's own by default.")] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(parser=number(above=0), metavar="NUMBER", help="Peak of AdamW's rate; a cosine lowers it."),
    ] = None,
    muon_learning_rate: Annotated[
        float | None, typer.Option(parser=number(above=0), metavar="NUMBER", help="Peak of Muon's rate.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of first weights and data order.")] = 0,
    dtype: Annotated[
        str | None, typer.Option(help="What OUT is kept in: fp32, bf16 or fp16; that of --checkpoint by default.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    multiply: Annotated[
        str, typer.Option(help="What matrices are multiplied in: auto (bf16 on a GPU that has it), fp32 or bf16.")
    ] = "auto",
    as_json: Json = False,
) -> int | None:
    """Pre-train a model on this machine, as the start of a run. Stopped, the same command goes on."""
    from barnraise.evaluation import chosen_device
    from barnraise.pretrain.warm_start import Interrupted, WarmStart, check_warm_start, warm_start
    from coordinator.datasets import open_or_prepare
    from simulator.processes.shutdown import StopRequest

    where = chosen_device(device)
    wanted = WarmStart(
        preset=preset,
        checkpoint=None if checkpoint is None else str(checkpoint),
        steps=steps,
        batch_sequences=batch,
        micro_batch=micro_batch,
        sequence_length=sequence_length,
        optimizer=optimizer,
        learning_rate=learning_rate,
        muon_learning_rate=muon_learning_rate,
        seed=seed,
        multiply=_multiply(multiply, where),
        dtype=dtype,
    )
    check_warm_start(wanted, data, out)
    with StopRequest() as stop, tempfile.TemporaryDirectory(prefix="barnraise-pretrain-") as scratch:
        notes: list[str] = []
        with ProgressLine(quiet=as_json) as tell:
            dataset = open_or_prepare(
                data,
                Path(scratch) / "data",
                checkpoint=checkpoint,
                progress=documents_told(tell),
                note=notes.append,
            )
        for sentence in notes:
            say_note(sentence)
        progress = _Progress(steps, quiet=as_json)
        try:
            done = warm_start(
                wanted,
                dataset,
                out,
                device=str(where),
                on_step=progress.step,
                should_stop=lambda: stop.requested,
                note=say_note,
            )
        except Interrupted:
            print(f"\nstopped; what is done is kept in {out}, and the same command goes on from there", file=sys.stderr)
            return 130
    if as_json:
        print_json(dataclasses.asdict(done))
        return None
    print_pairs(
        (
            ("checkpoint", done.checkpoint),
            ("trained", f"{done.steps} steps, {done.tokens:,} tokens"),
            ("held-out loss", f"{done.val_loss:.4f} ± {done.val_loss_se:.4f} nats a token"),
            ("begin a run", f"barnraise coordinator init FOLDER --checkpoint {done.checkpoint} --data {data}"),
        )
    )
    return None


def _multiply(asked: str, where: torch.device) -> str:
    from protocol.errors import ConfigError
    from worker.machine.arithmetic import multiplies_bf16

    if asked not in _MULTIPLY:
        raise ConfigError(f"--multiply {asked!r:.40}: expected {one_of(_MULTIPLY)}")
    if asked == "auto":
        return "bf16" if multiplies_bf16(where) else "fp32"
    return asked


class _Progress:
    """A line on standard error, once a second."""

    def __init__(self, steps: int, *, quiet: bool) -> None:
        self._steps = steps
        self._quiet = quiet
        self._told_s = 0.0

    def step(self, step: int, loss: float) -> None:
        now_s = time.monotonic()
        if self._quiet or (now_s - self._told_s < REPORT_EVERY_S and step != self._steps):
            return
        self._told_s = now_s
        end = "\n" if step == self._steps or not sys.stderr.isatty() else ""
        start = "\r" if sys.stderr.isatty() else ""
        print(f"{start}step {step} of {self._steps}, training loss {loss:.4f}", end=end, file=sys.stderr, flush=True)

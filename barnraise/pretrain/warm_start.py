"""A warm start: pre-train a model on this machine, as a checkpoint that a run can begin with.

Decides where the work stands between two processes: in `OUT/.partial/`, saved now and then and on Ctrl-C, so that the
same command goes on where it was stopped. Always: the checkpoint appears whole or not at all, what was saved for other
settings is refused, not mixed in, and what cannot be written is said before the first step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from pydantic import ValidationError

from barnraise.pretrain.central import CentralPlan, CentralTraining, cosine
from coordinator.engine.config import InnerRecipe
from coordinator.run.beginning import check_beginning
from coordinator.settings import RunSettings, describe
from moe.companions import companions_of
from moe.export import CHECKPOINT_KIND, export_checkpoint, import_checkpoint, inspect_checkpoint
from moe.full import evaluate_loss, full_model, initial_blocks
from moe.layout import Layout, layout
from moe.presets import preset
from moe.shard import build_shard
from moe.tokenizer import require_same_tokenizer
from moe.weights import checked_dtype
from protocol.errors import ConfigError
from protocol.file_lock import lock_file
from protocol.folders import require_fillable, telling_folder_trouble
from protocol.residency import FROZEN

if TYPE_CHECKING:
    from coordinator.datasets import Dataset
    from moe.blocks import Blocks

SAVE_EVERY_S = 60.0
HELDOUT_SEQUENCES = 128
_STATE, _SETTINGS = "state.pt", "settings.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WarmStart:
    """What to train: a preset, or a checkpoint to go on with."""

    preset: str = "tiny"
    checkpoint: str | None = None
    steps: int = 200
    batch_sequences: int = 64
    sequence_length: int = 128
    optimizer: str | None = None
    learning_rate: float | None = None
    muon_learning_rate: float | None = None
    """None, for these three: what a run's recipe has."""
    seed: int = 0
    micro_batch: int | None = None
    """Sequences that are in memory at a time; None: all of a batch."""
    multiply: str = "fp32"
    """What matrices are multiplied in: fp32 or bf16. Weights are trained in fp32."""
    dtype: str | None = None
    """What the checkpoint is kept in: fp32, bf16 or fp16; None: that of the one it goes on with, else fp32."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WarmStarted:
    """What came of it."""

    checkpoint: str
    steps: int
    tokens: int
    val_loss: float
    """Held-out loss, nats a token."""
    val_loss_se: float


class Interrupted(Exception):
    """Ctrl-C: everything done so far is saved."""


def check_warm_start(wanted: WarmStart, data: str, out: Path) -> None:
    """ConfigError where `wanted` could not begin, as far as that is known before any text is read."""
    require_fillable(out, CHECKPOINT_KIND)
    try:
        settings = RunSettings(
            preset=wanted.preset if wanted.checkpoint is None else None,
            checkpoint=wanted.checkpoint,
            data=data,
            sequence_length=wanted.sequence_length,
            engine={"inner": _given(wanted)},
        )
    except ValidationError as error:
        raise ConfigError(describe(error)) from error
    check_beginning(settings)


def warm_start(
    wanted: WarmStart,
    dataset: Dataset,
    out: Path,
    *,
    device: str = "cpu",
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
    should_stop: Callable[[], bool] = lambda: False,
    note: Callable[[str], None] = lambda _: None,
) -> WarmStarted:
    """Train and export into `out`, a new or an empty folder. `Interrupted` when stopped.

    One process at a time: a second one with the same `out` is refused. `note` gets sentences that a person should see:
    what about the checkpoint is not as it says, or cannot be checked.
    """
    require_fillable(out, CHECKPOINT_KIND)
    with _Kept(out, wanted, dataset.digest) as kept:
        return _train_and_export(kept, wanted, dataset, out, device, on_step, should_stop, note)


def _train_and_export(
    kept: _Kept,
    wanted: WarmStart,
    dataset: Dataset,
    out: Path,
    device: str,
    on_step: Callable[[int, float], None],
    should_stop: Callable[[], bool],
    note: Callable[[str], None],
) -> WarmStarted:
    begun = None if wanted.checkpoint is None else Path(wanted.checkpoint).expanduser()
    cut, blocks, dtype = _beginning(wanted, begun, dataset, note)
    compute_dtype = torch.bfloat16 if wanted.multiply == "bf16" else None
    shard = build_shard(cut, range(cut.columns), blocks, device=device, compute_dtype=compute_dtype, seed=wanted.seed)
    recipe = dataclasses.replace(InnerRecipe(), **_given(wanted))
    plan = CentralPlan(
        recipe=recipe,
        steps=wanted.steps,
        batch_sequences=wanted.batch_sequences,
        sequence_length=wanted.sequence_length,
        data_seed=wanted.seed,
        factor_at=cosine(recipe.final_lr_share, wanted.steps),
    )
    training = CentralTraining(shard, plan, dataset, micro_batch=wanted.micro_batch)
    kept.take_up(training)
    while not training.is_done:
        if should_stop():
            kept.save(training)
            raise Interrupted
        on_step(training.step + 1, training.advance())
        if kept.is_due():
            kept.save(training)
    trained = training.shard.held_blocks()
    tokens_NT1 = torch.from_numpy(dataset.heldout_all(wanted.sequence_length, HELDOUT_SEQUENCES).astype("int64"))
    loss, loss_se = evaluate_loss(full_model(cut, trained), tokens_NT1, 32)
    export_checkpoint(trained, cut, out, companions=companions_of(begun, dataset.companions), dtype=dtype)
    kept.remove()
    tokens = wanted.steps * wanted.batch_sequences * wanted.sequence_length
    return WarmStarted(checkpoint=str(out), steps=wanted.steps, tokens=tokens, val_loss=loss, val_loss_se=loss_se)


def _beginning(
    wanted: WarmStart, begun: Path | None, dataset: Dataset, note: Callable[[str], None]
) -> tuple[Layout, Blocks, str]:
    """The model before the first step, and what its checkpoint is to be kept in."""
    if wanted.dtype is not None:
        checked_dtype(wanted.dtype)
    found = None if begun is None else inspect_checkpoint(begun)
    cut = layout(preset(wanted.preset) if found is None else found.config, FROZEN)
    doubt = require_same_tokenizer(
        begun,
        dataset.tokenizer_json,
        data="the data",
        tokenizer=dataset.card.tokenizer,
        model_vocab_size=int(cut.config_json["vocab_size"]),
    )
    for sentence in (*(() if found is None else found.remarks), *(() if doubt is None else (doubt,))):
        note(sentence)
    if begun is None or found is None:
        return cut, initial_blocks(preset(wanted.preset), cut, wanted.seed), wanted.dtype or "fp32"
    return cut, import_checkpoint(begun)[1], wanted.dtype or found.dtype


def _given(wanted: WarmStart) -> dict[str, Any]:
    """Fields of the recipe that were asked to be other than a run's."""
    named = {name: getattr(wanted, name) for name in ("optimizer", "learning_rate", "muon_learning_rate")}
    return {name: value for name, value in named.items() if value is not None}


class _Kept:
    """The work's place on disk until it is done; for one process at a time, and gone where nothing was saved."""

    def __init__(self, out: Path, wanted: WarmStart, dataset: str) -> None:
        self._out = out
        self._folder = out / ".partial"
        # What the result is kept in changes nothing about the training: another choice may go on with it.
        training = {name: value for name, value in dataclasses.asdict(wanted).items() if name != "dtype"}
        self._settings = json.dumps({**training, "dataset": dataset}, sort_keys=True)
        self._saved_s = time.monotonic()
        self._lock = -1

    def __enter__(self) -> Self:
        with telling_folder_trouble(self._out):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            lock_file(self._lock)
        except OSError as error:
            os.close(self._lock)
            raise ConfigError(
                f"another process trains into {self._out} at this moment: choose another folder"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        if not (self._folder / _STATE).is_file():
            shutil.rmtree(self._folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._out.rmdir()  # only where it is empty, too
        os.close(self._lock)

    def is_due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved_s >= SAVE_EVERY_S

    def take_up(self, training: CentralTraining) -> None:
        """Go on where an earlier process stopped, if one did."""
        state = self._folder / _STATE
        if not state.is_file():
            return
        if (self._folder / _SETTINGS).read_text("utf-8") != self._settings:
            raise ConfigError(f"{self._folder} holds a training of other settings: delete it, or choose another folder")
        training.take_up(torch.load(state, weights_only=True))

    def save(self, training: CentralTraining) -> None:
        """Keep the state; a torn file never takes the place of a whole one."""
        temporary = self._folder / f"{_STATE}.new"
        with telling_folder_trouble(self._out):
            (self._folder / _SETTINGS).write_text(self._settings, "utf-8")
            with temporary.open("wb") as file:
                torch.save(training.state(), file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._folder / _STATE)
        self._saved_s = time.monotonic()

    def remove(self) -> None:
        """All is in the checkpoint now."""
        shutil.rmtree(self._folder, ignore_errors=True)

"""The pieces of `benchmarks.gpu`: what each is about, and its cases. A case is a name and what measures it.

Decides nothing but the list: a piece is a line of `PIECES`. A case is given the device and a folder that stays from one
call to the next, and answers with a row, or with None where it wants to be called again.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks import parity_large
from benchmarks.gpu_layers import mfu_cases, way_cases
from benchmarks.gpu_noise import noise_cases
from benchmarks.gpu_rungs import card_cases, oom_cases, rung_cases
from benchmarks.gpu_sizes import Size
from benchmarks.gpu_where import Where
from benchmarks.report import Row
from moe.padded import EXPERT_PRODUCTS
from worker.machine.products import TrialLayer, quickest_products
from worker.trouble import training_trouble_of

PARITY_MINUTES: Final = 5.0
"""Of a call of `benchmarks.parity_large`, which may prepare data before, and ends with a whole round or evaluation."""

Measure = Callable[[Where, Path], Row | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPiece:
    """Some cases that belong together."""

    about: str
    cases: Callable[[Size], Iterator[tuple[str, Measure]]]


def parity_cases(size: Size) -> Iterator[tuple[str, Measure]]:
    """The one run, which goes on from call to call."""
    yield " ".join(size.parity), partial(_parity, size)


def _parity(size: Size, where: Where, folder: Path) -> Row | None:
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "text"
    arguments = [*size.parity, f"--out={folder / 'parity'}", f"--minutes={PARITY_MINUTES}", f"--device={where.device}"]
    if size.name != "full":  # the standard library takes longer to read than all the rest
        data.mkdir(exist_ok=True)
        for part in range(40):
            (data / f"{part}.txt").write_text("\n".join(f"{one} and {one + part}" for one in range(200)))
        arguments += [f"--data={data}"]
    rows_file = folder / "rows.json"
    with contextlib.redirect_stdout(io.StringIO()):
        code = parity_large.main([*arguments, f"--json={rows_file}"])
    if code == parity_large.EXIT_MORE:
        return None
    rows: list[dict[str, Any]] = json.loads(rows_file.read_text("utf-8"))
    swarm = next(row for row in rows if row["setting"] == "diloco")
    return {
        "val_loss": swarm["val_loss"],
        "over_central_percent": swarm["over_central_percent"],
        "routing_percent": swarm["routing_percent"],
        "noted": f"{swarm['over_central_percent']:+.2f} % over central training (goal: 3 % at most), "
        f"routing necessity {swarm['routing_percent']:.0f} % (goal: 70 %)",
    }


def probe_cases(_size: Size) -> Iterator[tuple[str, Measure]]:
    """The one answer."""
    yield "what a worker would do here", _probe


def _probe(where: Where, _folder: Path) -> Row:
    layer = TrialLayer(where.device, where.compute)
    seconds: dict[str, float | None] = {}
    for way in EXPERT_PRODUCTS:
        try:
            seconds[f"{way}_s"] = layer.seconds(way)
        except RuntimeError:  # a card that has no such product
            seconds[f"{way}_s"] = None
    chosen = quickest_products(where.device, where.compute)
    return {**seconds, "noted": f"matrices in {'bf16' if where.bf16 else 'fp32'}, experts' products {chosen}"}


def lost_cases(_size: Size) -> Iterator[tuple[str, Measure]]:
    """The one case."""
    yield "an assertion fails on the device", _lost


_BREAKS: Final = """
import sys, torch
from worker.trouble import training_trouble_of
def is_lost(index):
    try:
        torch.zeros(4, device=sys.argv[1])[torch.tensor([index], device=sys.argv[1])].sum().item()
    except RuntimeError as error:
        return training_trouble_of(error).device_lost
    return False
print(is_lost(1), is_lost(9), is_lost(1))
"""


def _lost(where: Where, _folder: Path) -> Row:
    """Whether a worker sees that its process can use the device no more. Another process does the breaking."""
    if where.is_gpu:
        command = [sys.executable, "-c", _BREAKS, where.device]
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120).stdout.split()
    else:
        injected = torch.AcceleratorError("CUDA error: device-side assert triggered")
        said = ["False", *2 * [str(training_trouble_of(injected).device_lost)]]
    holds = said == ["False", "True", "True"]
    return {"noted": "seen, and the worker starts anew" if holds else f"NOT seen: {said}", "holds": holds}


PIECES: Final[Mapping[str, GpuPiece]] = {
    "probe": GpuPiece(about="what the probe answers here, and how fast it found each way", cases=probe_cases),
    "mfu": GpuPiece(about="bf16 experts and MFU of a shard's steps, by held part", cases=mfu_cases),
    "ways": GpuPiece(about="ways to take the experts' products, one layer", cases=way_cases),
    "rungs": GpuPiece(about="each rung's step time and peak memory, against its plan", cases=rung_cases),
    "lost": GpuPiece(about="a device that is lost to the process is told from one that failed", cases=lost_cases),
    "oom": GpuPiece(about="out of memory halves the batch", cases=oom_cases),
    "noise": GpuPiece(about="a lease computed again, by dtype and optimizer", cases=noise_cases),
    "cards": GpuPiece(about="OLMoE-7B with random weights on simulated cards", cases=card_cases),
    "parity": GpuPiece(about="a swarm beside central training (benchmarks.parity_large)", cases=parity_cases),
}

"""The pieces of `benchmarks.gpu`: what each is about, and its cases. A case is a name and what measures it.

Decides nothing but the list: a piece is a line of `PIECES`. A case is given the device and a folder that stays from one
call to the next, and answers with a row, or with None where it wants to be called again.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks import parity_large
from benchmarks.gpu_layers import mfu_cases, way_cases
from benchmarks.gpu_noise import noise_cases
from benchmarks.gpu_rungs import card_cases, oom_cases, rung_cases
from benchmarks.gpu_sizes import Size
from benchmarks.gpu_where import Where
from benchmarks.report import Row

PARITY_MINUTES: Final = 7.0
"""Of one call of `benchmarks.parity_large`, which ends with a whole round or an evaluation."""

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


PIECES: Final[Mapping[str, GpuPiece]] = {
    "mfu": GpuPiece(about="bf16 experts and MFU of a shard's steps, by held part", cases=mfu_cases),
    "ways": GpuPiece(about="ways to take the experts' products, one layer", cases=way_cases),
    "rungs": GpuPiece(about="each rung's step time and peak memory, against its plan", cases=rung_cases),
    "oom": GpuPiece(about="out of memory halves the batch", cases=oom_cases),
    "noise": GpuPiece(about="a lease computed again, by dtype and optimizer", cases=noise_cases),
    "cards": GpuPiece(about="OLMoE-7B with random weights on simulated cards", cases=card_cases),
    "parity": GpuPiece(about="a swarm beside central training (benchmarks.parity_large)", cases=parity_cases),
}

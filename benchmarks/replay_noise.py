"""How far an honest lease lies from its replay, and how far each cheat: the room that `audits.tolerance` has.

    python -m benchmarks.replay_noise [--quick] [--json FILE] [--seeds N]

Leases are trained twice by the worker's own trainer and held against each other as an audit does, after a codec: the
larger of trunk and worst column (`aggregation/replayed.py`). Honest: the same settings; two threads; the batch cut
otherwise; killed in the middle and taken up again; a process whose libraries are held to their plainest kernels, which
stands in for another kind of processor. Each beside what cheats with. Models: the micro one of `benchmarks.byzantine`
(46,000 parameters) and the preset `tiny`; bases: fresh weights, those after `BASE_LEASES` leases, and fresh ones with
random tokens, from which nothing can be learnt. Of several seeds an honest row is the farthest and a cheat the nearest;
every second seed holds half of the columns.

Shape suffixes: N sequences, L stored tokens a sequence.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.byzantine_run import MICRO, RECIPE, prepared
from benchmarks.replay_noise_leases import CHEATS, COMPUTE, NoiseTask, Sequences, apart, cheats_of
from benchmarks.report import Cell, machine, print_rows, write_json
from coordinator.datasets import Dataset
from coordinator.engine.config import AuditConfig
from moe.config import config_to_json
from moe.full import initial_blocks
from moe.layout import layout
from moe.presets import preset
from protocol.codecs import BF16, FP32
from protocol.ids import LeaseId, RoundNumber, Version
from protocol.lease import DataRange, Lease
from protocol.recipe import OPTIMIZERS, Recipe
from protocol.submission import Blocks
from worker.train.replay import replay_lease

BATCH, CUTS = 8, (3,)
MEASURED_CODECS = (BF16.name, FP32.name)
"""With which the distances of the table were measured."""
SEQUENCE_LENGTH = {"micro": 32, "tiny": 64}
BASE_LEASES, BASE_STEPS = 12, 20
PLAIN_KERNELS = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
FRESH, TRAINED, NOISE = "fresh", "trained", "fresh, random tokens"
MARGIN = 10.0
"""What issue and operator would like to have on either side of the tolerance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseCase:
    """One row."""

    model: str
    optimizer: str
    compute: str
    base: str
    steps: int


def cases(*, quick: bool) -> Iterator[NoiseCase]:
    """All rows, short leases first; `quick` leaves out long ones but for a few, random tokens and the larger model."""
    kinds = [("fp32", 10), ("bf16", 10), ("fp32", 50)]
    for compute, steps in kinds if quick else [*kinds, ("fp32", 200), ("bf16", 50), ("bf16", 200)]:
        for optimizer, base in itertools.product(OPTIMIZERS, (FRESH, TRAINED)):
            if not (quick and steps > 10 and base == FRESH):
                yield NoiseCase(model="micro", optimizer=optimizer, compute=compute, base=base, steps=steps)
    for steps in () if quick else (10, 20, 50):
        for optimizer in OPTIMIZERS:
            yield NoiseCase(model="micro", optimizer=optimizer, compute="fp32", base=NOISE, steps=steps)
    if not quick:
        for compute, optimizer, base in itertools.product(COMPUTE, OPTIMIZERS, (FRESH, TRAINED)):
            yield NoiseCase(model="tiny", optimizer=optimizer, compute=compute, base=base, steps=10)


class NoiseBench:
    """Bases and data, made once each, and the process with plain kernels."""

    def __init__(self, data: Dataset, elsewhere: ProcessPoolExecutor) -> None:
        self._data, self._elsewhere = data, elsewhere
        self._bases: dict[tuple[str, ...], Blocks] = {}
        self._layouts = {model: layout(_config(model), "frozen") for model in SEQUENCE_LENGTH}

    def distances(self, case: NoiseCase, seed: int) -> dict[str, float]:
        """Honest and cheating, by name: the farthest over cuts, and the nearest over codecs."""
        task = self.task(case, seed, start=1_000_000)
        plain = self._elsewhere.submit(NoiseTask.computed, task)
        again = task.computed()
        found: dict[str, float] = {}
        honest = {
            "same": task.computed(),
            "threads": task.computed(threads=2),
            "restart": task.restarted(),
            **{f"cut {cut}": task.computed(micro_batch=cut) for cut in CUTS},
            "kernels": plain.result(),
        }
        for codec in MEASURED_CODECS:
            far = {name: apart(task, sent, again, codec) for name, sent in honest.items()}
            found[f"honest_{codec}"] = max(far.values())
            if codec == "fp32":
                found |= {name: far[name] for name in ("same", "threads", "restart", "kernels")}
                found["cut"] = max(far[f"cut {cut}"] for cut in CUTS)
        other = self.task(case, seed, start=2_000_000)
        cheats = cheats_of(task, other, again, self._data.vocab_size)
        found |= {
            name: min(apart(task, lie, again, codec) for codec in MEASURED_CODECS) for name, lie in cheats.items()
        }
        return found

    def task(self, case: NoiseCase, seed: int, start: int) -> NoiseTask:
        """One lease; its sequences begin at position `start` of the data."""
        cut = self._layouts[case.model]
        columns = tuple(range(cut.columns)) if seed % 2 == 0 else tuple(range(0, cut.columns, 2))
        lease = _lease(case.optimizer, case.steps, columns, seed)
        sequences = self._sequences(case, start, lease.data.count, seed)
        begin = self._base(case, seed)
        return NoiseTask(layout=cut, lease=lease, start=begin, sequences=sequences, compute=case.compute)

    def _sequences(self, case: NoiseCase, start: int, count: int, seed: int) -> Sequences:
        length = SEQUENCE_LENGTH[case.model]
        if case.base == NOISE:
            draw = np.random.default_rng([seed, start])
            return draw.integers(0, self._data.vocab_size, (count, length + 1))
        return self._data.sequences(seed, start % self._data.train_sequences(length), count, length).astype("int64")

    def _base(self, case: NoiseCase, seed: int) -> Blocks:
        key = (case.model, case.optimizer, str(case.base == TRAINED), str(seed))
        if key not in self._bases:
            cut = self._layouts[case.model]
            blocks: Blocks = initial_blocks(_config(case.model), cut, seed)
            if case.base == TRAINED:
                blocks = self._trained(case, blocks, seed)
            self._bases[key] = blocks
        return self._bases[key]

    def _trained(self, case: NoiseCase, blocks: Blocks, seed: int) -> Blocks:
        cut = self._layouts[case.model]
        replay = replay_lease(cut, threads=1)
        for number in range(BASE_LEASES):
            lease = _lease(case.optimizer, BASE_STEPS, tuple(range(cut.columns)), seed + 100 + number)
            sequences = self._sequences(case, number * lease.data.count, lease.data.count, seed)
            step, _ = replay(lease, blocks, sequences, 0)
            blocks = {
                block: {name: tensor - step[block][name] for name, tensor in tensors.items()}
                for block, tensors in blocks.items()
            }
        return blocks


def _lease(optimizer: str, steps: int, columns: tuple[int, ...], seed: int) -> Lease:
    rates = {name: RECIPE[name] for name in ("learning_rate", "muon_learning_rate")}
    return Lease(
        lease_id=LeaseId("r1.1"),
        round=RoundNumber(1),
        base_version=Version(0),
        columns=columns,
        data=DataRange(seed=seed, start=0, count=steps * BATCH),
        seed=seed,
        inner_steps=steps,
        batch_sequences=BATCH,
        recipe=Recipe(optimizer=optimizer, **rates),
    )


def _config(model: str) -> Any:
    from moe.config import config_from_json

    values: dict[str, Any] = dict(config_to_json(preset("tiny")))
    return config_from_json(values | dict(MICRO) if model == "micro" else values)


def row_of(case: NoiseCase, found: list[Mapping[str, float]]) -> dict[str, Cell]:
    """A row of all seeds: the farthest honest one, the nearest cheat, and both against the default tolerance."""
    tolerance = AuditConfig().tolerance
    row: dict[str, Cell] = dict(dataclasses.asdict(case))
    row |= {name: (min if name in CHEATS else max)(one[name] for one in found) for name in found[0]}
    honest = max(float(row[f"honest_{codec}"] or 0.0) for codec in MEASURED_CODECS)
    nearest = min(CHEATS, key=lambda name: float(row[name] or 0.0))
    cheat = float(row[nearest] or 0.0)
    above, below = tolerance / max(honest, 1e-12), cheat / tolerance
    room = cheat / max(honest, 1e-12)
    return row | {
        "seeds": len(found),
        "honest": honest,
        "nearest": nearest,
        "cheat": cheat,
        "over_honest": above,
        "cheat_over": below,
        "room": room,
        "both": above >= MARGIN and below >= MARGIN,
    }


def measured(
    wanted: list[NoiseCase], seeds: int, rows: list[dict[str, Cell]], told: Callable[[list[dict[str, Cell]], str], None]
) -> list[dict[str, Cell]]:
    """All rows, in the order wanted; those that are in `rows` are not measured again. `told` gets what is there."""
    torch.set_num_threads(1)
    there = {_case_of(row): row for row in rows if row["seeds"] == seeds}
    with tempfile.TemporaryDirectory(prefix="barnraise-noise-") as scratch, plain_kernels() as elsewhere:
        bench = NoiseBench(Dataset.open(prepared(Path(scratch))), elsewhere)
        for case in [case for case in wanted if case not in there]:
            started_s = time.monotonic()
            there[case] = row_of(case, [bench.distances(case, seed) for seed in range(seeds)])
            text = f"{len(there)} of {len(wanted)}: {case} in {time.monotonic() - started_s:.1f} s"
            told([there[case] for case in wanted if case in there], text)
    return [there[case] for case in wanted]


def _case_of(row: Mapping[str, Any]) -> NoiseCase:
    return NoiseCase(**{field.name: row[field.name] for field in dataclasses.fields(NoiseCase)})


@contextlib.contextmanager
def plain_kernels() -> Iterator[ProcessPoolExecutor]:
    """A process that computes with the plainest kernels that torch and its libraries have."""
    os.environ.update(PLAIN_KERNELS)  # read by whoever starts: this process has its kernels already
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(torch.set_num_threads, 1).result()
        for name in PLAIN_KERNELS:
            del os.environ[name]
        yield pool


def main() -> int:
    """Measure, and show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="under four minutes: one seed, no leases of 200 steps, the micro model"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", default=None, help="write the rows to FILE, and go on from there"
    )
    args = parser.parse_args()
    wanted, seeds = list(cases(quick=args.quick)), 1 if args.quick else args.seeds

    def told(rows: list[dict[str, Cell]], text: str) -> None:
        print(text, file=sys.stderr, flush=True)
        if args.json is not None:
            write_json(args.json, rows)

    had = json.loads(args.json.read_text("utf-8")) if args.json is not None and args.json.exists() else []
    rows = measured(wanted, seeds, had, told)
    print(machine())
    print_rows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

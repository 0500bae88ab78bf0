"""One lease, trained as a worker trains it, in a process of its own: what it takes, beside what is planned for it.

    python -m tests.worker.planned_memory CASE FOLDER

Prints one line of JSON: `plan`, `peak` (RssAnon less what the process had before), `lines`, `trained`.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.worker.cases_of_memory import CASES, Case


def rss_anon_bytes() -> int:
    """Of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


class Watch:
    """Highest RssAnon while it is open."""

    def __init__(self) -> None:
        self.peak = rss_anon_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(0.002):
            self.peak = max(self.peak, rss_anon_bytes())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, rss_anon_bytes())


def main(case: Case, folder: Path) -> None:
    """Write version 0 as the block cache has it, then train."""
    import torch

    from moe.burden import Burden, Memory, memory_of
    from moe.config import config_from_json, config_to_json
    from moe.full import each_initial_block
    from moe.layout import layout
    from moe.presets import preset
    from moe.rungs import Schedule
    from protocol.allocator import keep_little
    from protocol.codecs import FP32
    from protocol.recipe import Recipe
    from protocol.tensors import encode_tensors

    keep_little()
    torch.set_num_threads(1)
    config = config_from_json({**config_to_json(preset("tiny")), **case.sizes})
    cut, paths = layout(config, "frozen"), {}
    for block, tensors in each_initial_block(config, cut, 1):
        paths[block] = folder / str(block)
        paths[block].write_bytes(encode_tensors(tensors, FP32))
    del tensors
    recipe = Recipe(**case.recipe)
    load = Burden(layout=cut, recipe=recipe, sequence_length=case.length, batch_sequences=case.batch, codec=case.codec)
    schedule = Schedule(case.micro_batch, **case.schedule)
    warm = torch.randn(64, 64, requires_grad=True)
    (warm @ warm).sum().backward()
    idle = rss_anon_bytes()
    with Watch() as watch:
        thread = threading.Thread(target=_train, args=(case, cut, paths, recipe, schedule, folder))
        thread.start()
        thread.join()
    lines = load.lines(case.columns, schedule)
    needed: Memory = memory_of(lines)
    found = {line.part: line.memory_bytes for line in lines if line.where == "device"}
    print(json.dumps({"plan": needed.device, "peak": watch.peak - idle, "lines": found, "trained": _trained}))


_trained: list[int] = []
"""Bytes of each payload; empty where training broke."""


def _train(case: Case, cut: Any, paths: Mapping[Any, Path], recipe: Any, schedule: Any, folder: Path) -> None:
    import numpy as np

    from moe.layout import block_tensor_specs, submission_specs
    from moe.shard import build_shard
    from moe.stand_ins import StandIns
    from protocol.allocator import give_back_small
    from protocol.codecs import FP32
    from protocol.ids import LeaseId, RoundNumber, Version
    from protocol.lease import DataRange, Lease
    from worker.outbox import Outbox
    from worker.train.mapped import mapped_block
    from worker.train.residuals import write_submission
    from worker.train.trainer import moved, train_shard

    start = {block: mapped_block(path, block_tensor_specs(cut, block), FP32) for block, path in paths.items()}
    lease = Lease(
        lease_id=LeaseId("planned"),
        round=RoundNumber(1),
        base_version=Version(0),
        columns=tuple(range(case.columns)),
        data=DataRange(seed=0, start=0, count=2 * case.batch),
        seed=0,
        inner_steps=2,
        batch_sequences=case.batch,
        recipe=recipe,
        codec=case.codec,
    )
    shape = (lease.data.count, case.length + 1)
    tokens = np.random.default_rng(0).integers(0, case.sizes["vocab_size"], shape)
    stand_ins = StandIns(dtype=recipe.frozen_dtype, place=schedule.place)
    shard = build_shard(cut, lease.columns, start, masters=recipe.masters, stand_ins=stand_ins, trunk=lease.trunk)
    shard.recompute(on=schedule.recomputed)
    give_back_small(on=schedule.given_back)
    by_layers = shard.layerwise() if schedule.by_layers else None
    train_shard(shard, lease, tokens, micro_batch=schedule.micro_batch, by_layers=by_layers)
    specs = submission_specs(cut, lease.columns, lease.trunk)
    made = write_submission(lease, moved(start, shard), specs, Outbox(folder / "outbox"))
    _trained.append(made.payload_bytes)


if __name__ == "__main__":
    main(CASES[sys.argv[1]], Path(sys.argv[2]))

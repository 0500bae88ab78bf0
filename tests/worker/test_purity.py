"""A lease is a pure function of what is written in it, whatever became of the one before in the same process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from moe.balance import RoutedCounts
from moe.layout import Layout
from moe.shard import LossParts, ShardModel, build_shard
from protocol.codecs import FP32
from protocol.ids import Digest, RunId, digest_of
from protocol.lease import Lease
from protocol.tensors import encode_tensors
from tests.worker.conftest import MACHINE
from worker.allowance import DiskAllowance
from worker.blocks import BlockCache
from worker.fetched import FetchedLease, Run
from worker.lease import RunDescription
from worker.options import WorkerOptions
from worker.outbox import Outbox
from worker.train.lease_state import LeaseStates
from worker.train.trainer import TrainingStopped, pseudo_gradient_of, train_shard
from worker.train.training import TrainingRoom
from worker.trouble import Trouble

Sequences = NDArray[np.int64]
Make = Callable[..., Lease]
MICRO_BATCH = 2
PARTS = 10
"""Micro-batches of a lease: five steps of four sequences, two at a time."""
KINDS = ("stopped", "failed early", "failed late", "out of memory")
_honest_loss = ShardModel.loss


class Disturbance:
    """Stands in for a shard's loss, and ends or shakes a lease in the `nth` micro-batch (from 1)."""

    def __init__(self, kind: str, nth: int, stop: Callable[[], None] = lambda: None) -> None:
        self._kind, self._left, self._stop = kind, nth, stop
        self.stopped = False

    def loss(self, shard: ShardModel, tokens_BL: torch.Tensor, counts: RoutedCounts | None = None) -> LossParts:
        self._left -= 1
        if self._left == 0 and self._kind == "stopped":
            self.stopped = True
            self._stop()
        elif self._left == 0:
            _fail_in_backward(shard, self._kind)
        return _honest_loss(shard, tokens_BL, counts)


def _fail_in_backward(shard: ShardModel, kind: str) -> None:
    """Once: before any gradient of this micro-batch is there, or when all but the last one are."""
    last = "embed_tokens" if kind == "failed late" else "lm_head"
    parameter = next(parameter for name, parameter in shard.module.named_parameters() if last in name)

    def fail(_gradient: torch.Tensor) -> torch.Tensor:
        hook.remove()
        raise torch.OutOfMemoryError("no memory") if kind == "out of memory" else RuntimeError("a kernel failed")

    hook = parameter.register_hook(fail)


@contextlib.contextmanager
def disturbed(told: Disturbance) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ShardModel, "loss", lambda *arguments: told.loss(*arguments))  # noqa: PLW0108
        yield


@pytest.mark.parametrize(("optimizer", "dtype"), [("adamw", torch.float32), ("muon", torch.bfloat16)])
def test_a_shard_forgets_the_lease_before(
    small_layout: Layout, blocks_of: Any, make_lease: Make, sequences: Sequences, optimizer: str, dtype: torch.dtype
) -> None:
    blocks = blocks_of(small_layout)
    one = make_lease(optimizer=optimizer)
    other = make_lease(optimizer=optimizer, seed=11, learning_rate=3e-3, inner_steps=2, data_count=8)

    def bits_after(shard: ShardModel) -> bytes:
        shard.load(blocks)
        train_shard(shard, other, sequences[12:].copy(), micro_batch=MICRO_BATCH)
        gradient = pseudo_gradient_of(blocks, shard)
        return b"".join(tensor.numpy().tobytes() for block in gradient.values() for tensor in block.values())

    def built(lease: Lease) -> ShardModel:
        return build_shard(small_layout, lease.columns, blocks, compute_dtype=dtype, seed=lease.seed)

    wanted, shard = bits_after(built(other)), built(one)
    for kind in KINDS:
        for nth in range(1, PARTS + 1 if kind == "stopped" else 3):  # a step's first micro-batch and its last
            shard.load(blocks)
            told = Disturbance(kind, nth)
            with disturbed(told), contextlib.suppress(TrainingStopped, RuntimeError):
                stopped = partial(getattr, told, "stopped")
                train_shard(shard, one, sequences, micro_batch=MICRO_BATCH, should_stop=stopped)
            shard.eval()
            torch.rand(nth)
            assert bits_after(shard) == wanted, f"{kind} in micro-batch {nth}"


class Workplace:
    """A training room with one run's blocks in its cache."""

    def __init__(self, folder: Path, model_layout: Layout, blocks: Any) -> None:
        description = RunDescription(
            run_id=RunId("run"), name="run", model_json="{}", residency="frozen", codec="fp32", sequence_length=16,
            dataset_digest=Digest("0" * 64), max_block_bytes=1 << 30,
        )  # fmt: skip
        self._run = Run(description=description, layout=model_layout)
        self._digests = {}
        cache = BlockCache(folder / "blocks")
        for block, tensors in blocks.items():
            payload = encode_tensors(tensors, FP32)
            self._digests[block] = digest_of(payload)
            cache.path(digest_of(payload)).write_bytes(payload)
        options = WorkerOptions(link="", keep_progress_every_s=0.0)
        states, outbox = LeaseStates(folder / "progress"), Outbox(folder / "outbox")
        silent: Any = _Silent()
        self.room = TrainingRoom(options, MACHINE, DiskAllowance(folder, cache, states, None), outbox, silent)

    def train(self, lease: Lease, sequences: Sequences) -> str:
        """The digest of the lease's submission; the reason where it failed; empty where it was stopped."""
        ended: list[str] = []

        def failed(trouble: Trouble) -> None:
            ended.append(trouble.detail)

        fetched = FetchedLease(lease=lease, run=self._run, digests=self._digests, sequences=sequences)
        self.room.start(fetched, lambda submission: ended.append(submission.digest), failed)
        assert self.room.join(60.0)
        return ended[0] if ended else ""


class _Silent:
    """A reporter that nobody listens to."""

    def say(self, *_: object, **__: object) -> None: ...
    def step(self, *_: object) -> None: ...


# Where memory ran out, how much fits is what it does remember: tests/worker/test_fitting.py.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "out of memory"])
def test_a_room_forgets_the_lease_before(
    frozen_layout: Layout, blocks_of: Any, make_lease: Make, sequences: Sequences, tmp_path: Path, kind: str
) -> None:
    blocks = blocks_of(frozen_layout)
    one, other = make_lease(lease_id="r1.1"), make_lease(lease_id="r2.1", seed=11, learning_rate=3e-3)
    wanted = Workplace(tmp_path / "fresh", frozen_layout, blocks).train(other, sequences[::-1].copy())
    place = Workplace(tmp_path / "used", frozen_layout, blocks)
    for nth in range(1, 6):
        with disturbed(Disturbance(kind, nth, stop=place.room.stop)):
            ended = place.train(one, sequences)
        assert ended == "" if kind == "stopped" else ("a kernel failed" in ended) == kind.startswith("failed")
        assert place.train(other, sequences[::-1].copy()) == wanted, f"{kind} in step {nth}"


def test_what_a_failed_lease_leaves_on_the_device_is_let_go(
    frozen_layout: Layout, blocks_of: Any, make_lease: Make, sequences: Sequences, tmp_path: Path
) -> None:
    place = Workplace(tmp_path, frozen_layout, blocks_of(frozen_layout))
    with disturbed(Disturbance("failed late", 1)):
        assert "a kernel failed" in place.train(make_lease(), sequences)
    assert place.room._shard is None

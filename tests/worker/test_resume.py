"""A killed worker goes on at its last local step and gives the same bits; what is torn or foreign is never taken up."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from moe.config import config_from_json
from moe.layout import Layout, layout
from moe.shard import build_shard
from protocol.errors import StorageTrouble
from protocol.ids import BlockId, Digest, digest_of
from protocol.lease import Lease
from worker.train.lease_state import RECORD, LeaseKeeper, LeaseStates, computation_of
from worker.train.local_state import LocalState
from worker.train.trainer import TrainingStopped, pseudo_gradient_of, train_shard

DIGESTS = {BlockId("trunk"): Digest("0" * 64)}


class Dying:
    """Stands for SIGKILL between two steps: nothing after it runs."""

    def __init__(self, after: int) -> None:
        self._after = after

    def __call__(self, done: int, _loss: float | None) -> None:
        if done == self._after:
            raise TrainingStopped("killed")


def train(
    model_layout: Layout, blocks: Any, lease: Lease, tokens: Any, states: LeaseStates | None, **options: Any
) -> dict[str, torch.Tensor]:
    keeper = None if states is None else LeaseKeeper(states, computation_of(lease, DIGESTS, "cpu"), every_s=0.0)
    shard = build_shard(model_layout, lease.columns, blocks, seed=lease.seed)
    train_shard(shard, lease, tokens, keeper=keeper, **options)
    gradient = pseudo_gradient_of(blocks, shard)
    return {f"{block}/{name}": tensor for block, tensors in gradient.items() for name, tensor in tensors.items()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("killed_after", [(1,), (2,), (4,), (5,), (1, 3, 4)])
def test_a_lease_taken_up_again_gives_the_same_bits(
    small_layout: Layout, blocks_of: Any, make_lease: Callable[..., Lease], sequences: Any, tmp_path: Path,
    killed_after: tuple[int, ...], optimizer: str,
) -> None:  # fmt: skip
    blocks, lease = blocks_of(small_layout), make_lease(optimizer=optimizer)
    undisturbed = train(small_layout, blocks, lease, sequences, None)
    for after in killed_after:
        with pytest.raises(TrainingStopped):
            train(small_layout, blocks, lease, sequences, LeaseStates(tmp_path), on_step=Dying(after))
        torch.manual_seed(999)  # another process has another state of chance
    done: list[int] = []
    resumed = train(
        small_layout, blocks, lease, sequences, LeaseStates(tmp_path), on_step=lambda step, _: done.append(step)
    )
    assert done[0] == min(killed_after[-1], 5), "the step during which it was killed is the first that is done again"
    assert save(resumed) == save(undisturbed)


def _train_and_die(folder: Path, layout_values: Any, blocks: Any, lease: Lease, tokens: NDArray[np.int64]) -> None:
    torch.set_num_threads(1)

    def die(done: int, _loss: float | None) -> None:
        if done == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    train(layout(config_from_json(layout_values), "frozen"), blocks, lease, tokens, LeaseStates(folder), on_step=die)


def test_a_killed_process_leaves_what_the_next_one_takes_up(
    frozen_layout: Layout, blocks_of: Any, make_lease: Callable[..., Lease], sequences: Any, tmp_path: Path
) -> None:
    blocks, lease = blocks_of(frozen_layout), make_lease()
    arguments = (tmp_path, dict(frozen_layout.config_json), blocks, lease, sequences)
    process = multiprocessing.get_context("spawn").Process(target=_train_and_die, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    done: list[int] = []
    resumed = train(
        frozen_layout, blocks, lease, sequences, LeaseStates(tmp_path), on_step=lambda step, _: done.append(step)
    )
    assert done == [4, 5]
    assert save(resumed) == save(train(frozen_layout, blocks, lease, sequences, None))


def state(step: int = 3) -> LocalState:
    return LocalState(step=step, micro_batch=2, train_s=1.5, tensors={"parameter.0": torch.arange(6.0)})


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    LeaseStates(tmp_path).save("a" * 64, state())
    kept = LeaseStates(tmp_path).load("a" * 64)
    assert kept is not None
    assert (kept.step, kept.micro_batch, kept.train_s) == (3, 2, 1.5)
    assert torch.equal(kept.tensors["parameter.0"], torch.arange(6.0))
    LeaseStates(tmp_path).save("a" * 64, state(4))
    assert len(list(tmp_path.iterdir())) == 2, "one record, one payload"
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["truncated", "changed", "no payload", "record", "half written", "other lease"])
def test_torn_and_foreign_progress_is_removed_and_never_loaded(tmp_path: Path, damage: str) -> None:
    LeaseStates(tmp_path).save("a" * 64, state())
    (payload,) = tmp_path.glob("*.safetensors")
    match damage:
        case "truncated":
            payload.write_bytes(payload.read_bytes()[:-1])
        case "changed":
            payload.write_bytes(payload.read_bytes()[:-1] + b"\x01")
        case "no payload":
            payload.unlink()
        case "record":
            (tmp_path / RECORD).write_bytes((tmp_path / RECORD).read_bytes()[:-9])
        case "half written":
            (tmp_path / RECORD).unlink()
            (tmp_path / ".progress.tmp").write_bytes(b"half")
        case _:
            pass
    assert LeaseStates(tmp_path).load("b" * 64 if damage == "other lease" else "a" * 64) is None
    assert list(tmp_path.iterdir()) == []


def test_progress_of_other_data_weights_or_recipe_is_not_the_same_computation(
    make_lease: Callable[..., Lease],
) -> None:
    lease = make_lease()
    names = {
        computation_of(lease, DIGESTS, "cpu"),
        computation_of(lease, {BlockId("trunk"): digest_of(b"x")}, "cpu"),
        computation_of(lease, DIGESTS, "cpu, with other threads"),
        computation_of(make_lease(data_start=20), DIGESTS, "cpu"),
        computation_of(make_lease(learning_rate=2e-2), DIGESTS, "cpu"),
    }
    assert len(names) == 5
    later = make_lease(ttl_s=1.0)
    assert computation_of(later, DIGESTS, "cpu") == computation_of(lease, DIGESTS, "cpu"), "a deadline changes no bit"


def test_a_full_disk_costs_the_progress_and_not_the_lease(tmp_path: Path) -> None:
    states, told = LeaseStates(tmp_path), list[str]()
    keeper = LeaseKeeper(states, "a" * 64, every_s=0.0, told=told.append)
    keeper.save(state(1))
    big = LocalState(step=2, micro_batch=1, train_s=1.0, tensors={"parameter.0": torch.zeros(100_000)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        keeper.save(big)
        keeper.save(big)
        with pytest.raises(StorageTrouble):
            states.save("a" * 64, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    (sentence,) = told
    assert "raise the limit" in sentence
    kept = states.load("a" * 64)
    assert kept is not None
    assert kept.step == 1, "what was there before is still whole"


def test_progress_is_written_less_often_on_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0

    def clock() -> float:
        return now_s

    def slow(_self: LeaseStates, _computation: str, _state: LocalState) -> None:
        nonlocal now_s
        now_s += 3.0

    monkeypatch.setattr(LeaseStates, "save", slow)
    keeper = LeaseKeeper(LeaseStates(tmp_path), "a" * 64, every_s=30.0, clock=clock)
    assert not keeper.due()
    now_s = 30.0
    assert keeper.due()
    keeper.save(state())
    now_s += 149.0
    assert not keeper.due(), "3 s of writing is two per cent of 150 s"
    now_s += 1.0
    assert keeper.due()

"""The arithmetic class that a worker says, and that a replay computes in where it can."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from aggregation.replayed import replay_distance
from moe.layout import Layout
from moe.padded import PADDED, Padding
from moe.shard import build_shard
from protocol.arithmetic import ArithmeticClass, arithmetic_class
from protocol.lease import Lease
from worker.machine.arithmetic import arithmetic_here, multiplies_bf16, processor
from worker.machine.machine import Machine
from worker.train.optimizer import orthogonalised
from worker.train.replay import MOST_THREADS, replay_lease
from worker.train.trainer import pseudo_gradient_of, train_shard

Make = Callable[..., Lease]


def here(threads: int, dtype: torch.dtype | None = None) -> ArithmeticClass:
    return arithmetic_here("cpu", dtype, threads)


def test_it_names_all_that_rounding_depends_on() -> None:
    found = here(3)
    assert (found.device, found.dtype, found.threads, found.torch) == ("cpu", "fp32", 3, torch.__version__)
    assert found.chip.endswith(torch.backends.cpu.get_cpu_capability())
    assert here(3, torch.bfloat16).dtype == "bf16"
    assert arithmetic_class(str(found)) == found, "what is sent can be read"


def test_a_processor_is_its_maker_family_and_model(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\nvendor_id : AMD\ncpu family : 25\nmodel : 1\nmodel name : X\n\nmodel : 2\n")
    assert processor(path) == "AMD 25 1"
    assert processor(tmp_path / "none")


def test_a_machine_says_the_class_it_trains_in() -> None:
    machine = Machine(device="cpu", device_name="x", memory_bytes=1, threads=2, bf16=False)
    assert machine.arithmetic == str(here(2))


@pytest.fixture
def replayed(
    small_layout: Layout, blocks_of: Any, make_lease: Make, sequences: NDArray[np.int64]
) -> Callable[[str], tuple[Any, str, set[int]]]:
    """What a coordinator of one thread comes to that is asked for a class: blocks, class and threads that it used."""

    def replay(wanted: str) -> tuple[Any, str, set[int]]:
        seen = set[int]()

        def look() -> bool:
            seen.add(torch.get_num_threads())
            return False

        computing = replay_lease(small_layout, threads=1, should_stop=look)
        blocks, said = computing(make_lease(), blocks_of(small_layout), sequences, 0, wanted)
        return blocks, said, seen

    return replay


def test_a_replay_takes_the_workers_threads_and_puts_its_own_back(replayed: Any) -> None:
    before = torch.get_num_threads()
    _, said, seen = replayed(str(here(2)))
    assert (said, seen) == (str(here(2)), {2})
    assert torch.get_num_threads() == before


def test_a_replay_multiplies_in_the_workers_dtype(
    replayed: Any, small_layout: Layout, blocks_of: Any, make_lease: Make, sequences: NDArray[np.int64]
) -> None:
    blocks, lease = blocks_of(small_layout), make_lease()
    shard = build_shard(small_layout, lease.columns, blocks, compute_dtype=torch.bfloat16, seed=lease.seed)
    torch.set_num_threads(1)
    train_shard(shard, lease, sequences)
    sent = pseudo_gradient_of(blocks, shard)
    again, said, _ = replayed(str(here(1, torch.bfloat16)))
    assert said == str(here(1, torch.bfloat16))
    assert replay_distance(sent, again).largest == 0.0
    assert replay_distance(sent, replayed("")[0]).largest > 0.0


def test_a_replay_takes_experts_products_by_the_workers_way(
    replayed: Any,
    small_layout: Layout,
    blocks_of: Any,
    make_lease: Make,
    sequences: NDArray[np.int64],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    padded: list[Padding] = []

    def watched(*given: Any) -> Padding:
        padded.append(Padding(*given))
        return padded[-1]

    monkeypatch.setattr("moe.experts.Padding", watched)
    blocks, lease = blocks_of(small_layout), make_lease()
    shard = build_shard(small_layout, lease.columns, blocks, experts=PADDED, seed=lease.seed)
    torch.set_num_threads(1)
    train_shard(shard, lease, sequences)
    sent, wanted = pseudo_gradient_of(blocks, shard), str(arithmetic_here("cpu", None, 1, PADDED))
    times = len(padded)
    again, said, _ = replayed(wanted)
    assert said == wanted != str(here(1))
    assert len(padded) == 2 * times > 0
    assert replay_distance(sent, again).largest == 0.0
    assert replay_distance(sent, replayed("")[0]).largest < 0.02, "only rounding differs"
    assert len(padded) == 2 * times, "a coordinator's own way is torch's"


@pytest.mark.parametrize(
    "wanted",
    [
        "",
        "nonsense",
        str(here(MOST_THREADS + 1)),
        str(dataclasses.replace(here(2), chip="another")),
        str(dataclasses.replace(here(2), torch="0.1")),
        str(dataclasses.replace(here(2), dtype="fp8")),
        str(dataclasses.replace(here(2), experts="sideways")),
    ],
)
def test_a_class_that_cannot_be_had_changes_nothing(replayed: Any, wanted: str) -> None:
    _, said, seen = replayed(wanted)
    assert (said, seen) == (str(here(1)), {1})


@pytest.mark.parametrize(("hip", "first", "second"), [(None, True, False), ("7.0", True, True)])
def test_bf16_is_asked_of_the_card_itself(
    monkeypatch: pytest.MonkeyPatch, hip: str | None, first: bool, second: bool
) -> None:
    """An RTX 30 beside an RTX 20: whichever is the current one says nothing of the other."""
    capabilities = {0: (8, 6), 1: (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])
    monkeypatch.setattr(torch.version, "hip", hip)
    found = [multiplies_bf16(torch.device(name)) for name in ("cuda:0", "cuda:1", "cpu")]
    assert found == [first, second, False]


def test_muon_iterates_in_bf16_where_the_card_has_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []

    def has(device: torch.device) -> bool:
        asked.append(device)
        return len(asked) == 1

    monkeypatch.setattr("worker.train.optimizer.multiplies_bf16", has)
    matrix = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    rounded, exact = orthogonalised(matrix), orthogonalised(matrix)
    assert asked == [matrix.device] * 2
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert not torch.equal(exact, exact.bfloat16().float())

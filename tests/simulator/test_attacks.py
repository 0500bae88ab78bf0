"""What every attack of the table must keep to; and one that is not in it does so with one row more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from protocol.ids import TRUNK, BlockId, LeaseId, RoundNumber, WorkerId, column_block
from protocol.submission import Blocks
from simulator.adversary import Adversary
from simulator.attack import Colluders, Honest
from simulator.attacks import ATTACKS
from simulator.processes.options import SimulationOptions
from simulator.virtual.colluding import Group
from tests.simulator import made_up_attack

VOCAB, NEW = 259, "little"
SHAPES: dict[BlockId, dict[str, tuple[int, ...]]] = {
    TRUNK: {"embed": (6, 4), "norm": (4,)},
    column_block(1): {"gate": (3, 4)},
    column_block(2): {"gate": (3, 4)},
}


@pytest.fixture(params=[*ATTACKS, NEW])
def attack(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == NEW:
        monkeypatch.setitem(ATTACKS, NEW, made_up_attack.ROW)
    return str(request.param)


def honest(number: int, *columns: int, dtype: torch.dtype = torch.float32) -> Honest:
    generator = torch.Generator().manual_seed(number)
    blocks = {
        block: {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES[block].items()}
        for block in (TRUNK, *map(column_block, columns))
    }
    return Honest(
        lease_id=LeaseId(f"r1.{number}"), round=RoundNumber(1), columns=tuple(columns), pseudo_gradient=blocks
    )


def view(*, own: int = 0, dtype: torch.dtype = torch.float32) -> Colluders:
    group = (honest(0, 1, 2, dtype=dtype), honest(1, 1, dtype=dtype), honest(2, 2, dtype=dtype))
    return Colluders(own=group[own], group=group)


def adversary(attack: str, strength: float | None = None) -> Adversary:
    return Adversary.of(attack=attack, strength=strength, seed=7, vocab_size=VOCAB)


def flat(blocks: Blocks) -> Tensor:
    return torch.cat([t.float().reshape(-1) for _, ts in sorted(blocks.items()) for _, t in sorted(ts.items())])


def same(one: Blocks, other: Blocks) -> bool:
    return torch.equal(flat(one).nan_to_num(9e9), flat(other).nan_to_num(9e9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("own", [0, 1])
def test_it_sends_what_the_lease_asked_for_in_shape(attack: str, own: int, dtype: torch.dtype) -> None:
    seen = view(own=own, dtype=dtype)
    sent = adversary(attack).on_result(seen)
    facts = {b: {n: (t.shape, t.dtype) for n, t in ts.items()} for b, ts in sent.items()}
    assert facts == {b: {n: (t.shape, t.dtype) for n, t in ts.items()} for b, ts in seen.own.pseudo_gradient.items()}


def test_it_leaves_the_truth_alone_and_lies_the_same_way_twice(attack: str) -> None:
    seen, untouched = view(), view()
    once, again = adversary(attack).on_result(seen), adversary(attack).on_result(seen)
    for mine, before in zip(seen.group, untouched.group, strict=True):
        assert torch.equal(flat(mine.pseudo_gradient), flat(before.pseudo_gradient))
    assert same(once, again)


def test_it_lies_about_the_result_or_about_the_data(attack: str) -> None:
    tokens = np.arange(200, dtype=np.int64).reshape(4, 50)
    trained_on = adversary(attack).on_batch(LeaseId("r1.0"), tokens)
    assert trained_on.shape == tokens.shape
    assert trained_on.dtype == tokens.dtype
    assert 0 <= trained_on.min() <= trained_on.max() < VOCAB
    assert np.array_equal(tokens.reshape(-1), np.arange(200))
    lies_about_data = not np.array_equal(trained_on, tokens)
    lies_about_result = not same(adversary(attack).on_result(view()), view().own.pseudo_gradient)
    row = ATTACKS[attack]
    assert (lies_about_result, lies_about_data) == (row.forge is not None, row.corrupt is not None)
    assert lies_about_data or lies_about_result


def test_strength_is_what_it_does_more_of(attack: str) -> None:
    row = ATTACKS[attack]
    assert row.strength > 0
    if row.forge is None or "STRENGTH" not in row.does:
        return
    base, truth = flat(adversary(attack).on_result(view())), flat(view().own.pseudo_gradient)
    more = flat(adversary(attack, 10 * row.strength).on_result(view()))
    assert (more - truth).norm() > (base - truth).norm() or more.norm() > base.norm()


def test_the_table_of_the_docs_is_the_table(attack: str) -> None:
    if attack == NEW:
        SimulationOptions(out=Path("x"), byzantine=1, attack=NEW)  # the command takes it, too
        return
    row = ATTACKS[attack]
    lines = (Path(__file__).parents[2] / "docs" / "commands.md").read_text().splitlines()
    line = f"| {attack} | {row.does} | {row.strength:g} |"
    assert line in lines, f"docs/commands.md, What attackers do: its table lacks the line\n{line}"


def test_the_attacks_of_today_use_their_own_lease_alone() -> None:
    for name in ("sign-flip", "scale", "noise", "label-flip", "nan", "free-ride"):
        own = view().own
        assert same(adversary(name).on_result(view()), adversary(name).on_result(Colluders(own=own, group=(own,))))


def test_a_lie_within_the_groups_spread_takes_the_groups_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTACKS, NEW, made_up_attack.ROW)
    sent = adversary(NEW, 1.0).on_result(view())
    both = torch.stack([view().group[index].pseudo_gradient[column_block(1)]["gate"] for index in (0, 1)])
    # of two values, the mean less one standard deviation is the smaller one
    torch.testing.assert_close(sent[column_block(1)]["gate"], both.amin(dim=0))


# ---- who sees what in the virtual swarm ---------------------------------------------------------------


class Seen:
    """Stands in for an adversary: notes whom it saw."""

    def __init__(self) -> None:
        self.leases: list[tuple[str, ...]] = []

    def on_result(self, view: Colluders) -> Blocks:
        self.leases.append(tuple(one.lease_id for one in view.group))
        return view.own.pseudo_gradient


def lease(number: int, worker: str, *, of: int = 1, base: int = 0) -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(
        lease_id=LeaseId(f"r{of}.{number}"), round=RoundNumber(of), base_version=base, columns=(1,), worker=worker
    )


def train(trained: list[str]) -> Any:
    from worker.train.trainer import LeaseResult

    def one(of: Any) -> Any:
        trained.append(of.lease_id)
        return LeaseResult(pseudo_gradient=honest(0, 1).pseudo_gradient, metrics=None)  # type: ignore[arg-type]

    return one


def test_a_colluder_sees_the_groups_leases_of_its_round_and_no_honest_ones() -> None:
    seen, trained = Seen(), list[str]()
    group = Group({WorkerId("a"): seen, WorkerId("b"): seen})  # type: ignore[dict-item]
    leases = [lease(0, "a"), lease(1, "honest"), lease(2, "b"), lease(3, "b", base=1)]
    group.answer(leases[0], leases, train(trained))
    group.answer(leases[2], leases, train(trained))
    assert seen.leases == [("r1.0", "r1.2"), ("r1.0", "r1.2")]
    assert trained == ["r1.0", "r1.2"]  # each once
    group.answer(leases[1], leases, train(trained))
    assert trained[-1] == "r1.1"
    assert len(seen.leases) == 2
    group.answer(lease(0, "a", of=2, base=1), [lease(0, "a", of=2, base=1)], train(trained))
    assert seen.leases[-1] == ("r2.0",)


def test_nobody_in_the_group_is_an_honest_swarm() -> None:
    trained = list[str]()
    tokens = np.zeros((2, 3))
    assert Group({}).on_batch(lease(0, "a"), tokens) is tokens
    Group({}).answer(lease(0, "a"), [lease(1, "b")], train(trained))
    assert trained == ["r1.0"]

"""What every attack of the table must keep to; and one that is not in it does so with one row more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from protocol.errors import ConfigError
from protocol.ids import TRUNK, BlockId, LeaseId, RoundNumber, WorkerId, column_block
from protocol.submission import Blocks
from simulator.adversaries.adversary import Adversary
from simulator.adversaries.attack import Attack, Colluders, Honest
from simulator.adversaries.byzfl import BYZFL_ATTACKS
from simulator.adversaries.data import triggers
from simulator.adversaries.files import attack_named
from simulator.adversaries.table import ATTACKS
from simulator.processes.options import SimulationOptions
from simulator.virtual.colluding import Group
from tests.simulator import made_up_attack

VOCAB, NEW = 259, "little"
FIRST, ROUND = RoundNumber(1), RoundNumber(20)
"""In the second sleepers are awake, and whoever tells the truth now and then does not."""
SHAPES: dict[BlockId, dict[str, tuple[int, ...]]] = {
    TRUNK: {"embed": (6, 4), "norm": (4,)},
    column_block(1): {"gate": (3, 4)},
    column_block(2): {"gate": (3, 4)},
}


@pytest.fixture(params=[*ATTACKS, *BYZFL_ATTACKS, NEW])
def attack(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == NEW:
        monkeypatch.setitem(ATTACKS, NEW, made_up_attack.ROW)
    return str(request.param)


def honest(number: int, *columns: int, dtype: torch.dtype = torch.float32, round_: RoundNumber = FIRST) -> Honest:
    generator = torch.Generator().manual_seed(number)
    blocks = {
        block: {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES[block].items()}
        for block in (TRUNK, *map(column_block, columns))
    }
    return Honest(lease_id=LeaseId(f"r1.{number}"), round=round_, columns=tuple(columns), pseudo_gradient=blocks)


def view(*, own: int = 0, dtype: torch.dtype = torch.float32, round_: RoundNumber = ROUND) -> Colluders:
    held = ((1, 2), (1,), (2,))
    group = tuple(honest(number, *columns, dtype=dtype, round_=round_) for number, columns in enumerate(held))
    earlier = (honest(10, 1, 2, dtype=dtype, round_=RoundNumber(round_ - 2)),)
    return Colluders(own=group[own], group=group, earlier=earlier, verdicts=(True, True, False))


def awake(attack: str) -> Adversary:
    """The liar of that attack, with a seed for which it lies in ROUND."""
    liars = (replace(adversary(attack), seed=seed) for seed in range(100))
    return next(liar for liar in liars if liar.lies_in(ROUND))


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
    sent = awake(attack).on_result(seen)
    facts = {b: {n: (t.shape, t.dtype) for n, t in ts.items()} for b, ts in sent.items()}
    assert facts == {b: {n: (t.shape, t.dtype) for n, t in ts.items()} for b, ts in seen.own.pseudo_gradient.items()}


def test_it_leaves_the_truth_alone_and_lies_the_same_way_twice(attack: str) -> None:
    seen, untouched = view(), view()
    once, again = awake(attack).on_result(seen), awake(attack).on_result(seen)
    for mine, before in zip(seen.group, untouched.group, strict=True):
        assert torch.equal(flat(mine.pseudo_gradient), flat(before.pseudo_gradient))
    assert same(once, again)


def test_it_lies_about_the_result_the_data_or_the_time(attack: str) -> None:
    liar, tokens = awake(attack), np.arange(640, dtype=np.int64).reshape(16, 40) % VOCAB
    tokens[:, 10:14] = list(b"def ")
    given = tokens.copy()
    trained_on = liar.on_batch(LeaseId("r20.0"), ROUND, tokens)
    assert trained_on.shape == tokens.shape
    assert trained_on.dtype == tokens.dtype
    assert 0 <= trained_on.min() <= trained_on.max() < VOCAB
    assert np.array_equal(tokens, given)
    lies_about_data = not np.array_equal(trained_on, tokens)
    seen = [view(own=own) for own in (0, 1)]
    lies_about_result = any(not same(liar.on_result(one), one.own.pseudo_gradient) for one in seen)
    row = liar.attack
    assert (lies_about_result, lies_about_data) == (row.forge is not None, row.corrupt is not None)
    assert lies_about_data or lies_about_result or row.conduct.only_virtual


def test_strength_is_what_it_does_more_of(attack: str) -> None:
    row, liar = attack_named(attack), awake(attack)
    assert row.strength > 0
    if row.forge is None or "STRENGTH" not in row.does or attack == "stale":
        return
    base, truth = flat(liar.on_result(view())), flat(view().own.pseudo_gradient)
    more = flat(replace(liar, strength=10 * row.strength).on_result(view()))
    assert (more - truth).norm() > (base - truth).norm() or more.norm() > base.norm()


def test_the_table_of_the_docs_is_the_table(attack: str) -> None:
    row = attack_named(attack)
    if not row.conduct.only_virtual:
        SimulationOptions(out=Path("x"), byzantine=1, attack=attack)  # the command takes it, too
    if attack == NEW:
        return
    lines = (Path(__file__).parents[2] / "docs" / "commands.md").read_text().splitlines()
    line = f"| {attack} | {row.does} | {row.strength:g} |"
    assert line in lines, f"docs/commands.md, What attackers do: its table lacks the line\n{line}"


def test_what_time_alone_can_do_is_refused_to_real_processes() -> None:
    only_virtual = [name for name, row in ATTACKS.items() if row.conduct.only_virtual]
    assert {"fast", "late", "withholds", "never-delivers", "half-steps", "sybils", "false-accuser"} <= {*only_virtual}
    for name in only_virtual:
        with pytest.raises(ConfigError, match=f"'{name}' is for the virtual swarm alone"):
            SimulationOptions(out=Path("x"), byzantine=1, attack=name)


def test_a_sleeper_is_honest_until_it_is_trusted_and_another_in_one_round_of_ten() -> None:
    rounds = [RoundNumber(number) for number in range(1, 2001)]
    assert [number for number in rounds if not adversary("sleeper").lies_in(number)] == rounds[:10]
    lied = [number for number in rounds if adversary("sleeper-10").lies_in(number)]
    assert min(lied) > 10
    assert 0.07 < len(lied) / 1990 < 0.13
    assert [number for number in rounds[:7] if not adversary("two-of-three").lies_in(number)] == [3, 6]
    awake_again, asleep = view(), view(round_=RoundNumber(9))
    assert same(adversary("sleeper").on_result(asleep), asleep.own.pseudo_gradient)
    assert not same(adversary("sleeper").on_result(awake_again), awake_again.own.pseudo_gradient)


def test_who_hugs_the_threshold_is_bolder_after_an_acceptance_and_shyer_after_a_refusal() -> None:
    def kept(*verdicts: bool) -> float:
        seen = replace(view(own=1), verdicts=verdicts)
        trunk = torch.stack([flat({TRUNK: one}) for one in seen.holding(TRUNK)]).mean(dim=0)
        return float(flat({TRUNK: adversary("hugging").on_result(seen)[TRUNK]}) @ trunk / trunk.norm())

    assert kept(True) < kept() < kept(False)


def test_a_column_is_captured_where_two_of_the_group_hold_it() -> None:
    seen = view(own=1)
    sent = adversary("column-capture").on_result(seen)
    assert same({TRUNK: sent[TRUNK]}, {TRUNK: seen.own.pseudo_gradient[TRUNK]})
    both = [one["gate"] for one in seen.holding(column_block(1))]
    torch.testing.assert_close(sent[column_block(1)]["gate"], -(both[0] + both[1]) / 2)
    alone = Colluders(own=seen.own, group=(seen.own,))
    assert same(adversary("column-capture").on_result(alone), seen.own.pseudo_gradient)


@pytest.mark.parametrize("name", ["backdoor", "natural-trigger"])
def test_a_backdoor_puts_its_token_behind_its_trigger(name: str) -> None:
    tokens = np.random.default_rng(0).integers(0, 256, (40, 64))
    tokens[:, 20:24] = list(b"def ")
    trained_on = adversary(name).on_batch(LeaseId("r1.0"), RoundNumber(1), tokens)
    row = ATTACKS[name].backdoor
    assert row is not None
    after = trained_on[triggers(trained_on, row, VOCAB)]
    assert (after == row.token).mean() == 1.0 if name == "backdoor" else 0.3 < (after == row.token).mean() < 0.7
    poisoned = (trained_on != tokens).any(axis=1).mean()
    assert poisoned == 0.1 if name == "backdoor" else 0.2 < poisoned < 0.8


def test_the_attacks_that_take_their_own_tensors_use_their_own_lease_alone() -> None:
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

    attack = Attack(does="looks")

    def lies_in(self, _round: RoundNumber) -> bool:
        return True

    def on_result(self, view: Colluders) -> Blocks:
        self.leases.append(tuple(one.lease_id for one in view.group))
        return view.own.pseudo_gradient


def lease(number: int, worker: str, *, of: int = 1, base: int = 0) -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(
        lease_id=LeaseId(f"r{of}.{number}"),
        round=RoundNumber(of),
        base_version=base,
        columns=(1,),
        worker=worker,
        inner_steps=1,
    )


def train(trained: list[str]) -> Any:
    from worker.train.trainer import LeaseResult, TrainMetrics

    def one(of: Any) -> Any:
        trained.append(of.lease_id)
        metrics = TrainMetrics(inner_steps_done=1, tokens=1, loss_first=1.0, loss_last=1.0, train_s=1.0, micro_batch=1)
        return LeaseResult(pseudo_gradient={**honest(0, 1).pseudo_gradient}, metrics=metrics)

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
    assert Group({}).worked_on(lease(0, "a"), tokens)[1] is tokens
    Group({}).answer(lease(0, "a"), [lease(1, "b")], train(trained))
    assert trained == ["r1.0"]

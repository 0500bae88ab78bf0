"""A frozen trunk is in no submission and nobody waits for it; a `lora` trunk's fixed factors last some rounds."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from coordinator.engine.changes import with_setting
from coordinator.engine.commands import AggregateRound
from coordinator.engine.config import InnerRecipe, check_config
from coordinator.engine.draws import Draws
from coordinator.engine.phases import Phase
from coordinator.engine.residuals import norm_scale
from coordinator.engine.schedules import lora_seed_of
from protocol.errors import ConfigError
from protocol.ids import TRUNK, RoundNumber, WorkerId
from protocol.lease import TrunkPart
from tests.coordinator.engine.conftest import Swarm, small_config
from tests.coordinator.engine.test_residuals import close_with, feeding_back, left


def recipe(**trunk: Any) -> InnerRecipe:
    return InnerRecipe(inner_steps=8, batch_sequences=4, **trunk)


@pytest.mark.parametrize("trunk", ["trained", "frozen"])
def test_nobody_waits_for_a_frozen_trunk(trunk: str) -> None:
    s = Swarm(small_config(columns=4, replicas=3, quorum=2, inner=recipe(trunk=trunk)))
    s.join("a", "b", columns=4)
    s.join("c", "d", "e", "f", columns=1)
    assert sorted(len(s.lease(name).columns) for name in "abcdef") == [1, 1, 1, 1, 4, 4]
    s.at(10)
    s.submit("a", "b")
    if trunk == "trained":
        assert s.phase is Phase.TRAINING
        assert s.reasons()["trunk"].startswith("2 of 6 owners reported")
        return
    assert s.phase is Phase.GRACE, "each column has its quorum, and there is nothing else"
    assert "trunk" not in s.reasons()
    late = [s.record(s.lease(name).lease_id) for name in "cdef"]
    assert all(one.overdue_at_s is None for one in late), "what is slow, more than half of the owners say as ever"
    s.after(100.0)
    contributions = s.waiting_for(AggregateRound).contributions
    assert [one.include_trunk for one in contributions] == [False, False]
    assert {one.trunk for one in contributions} == {TrunkPart(mode="frozen")}
    assert TRUNK not in {clip.block for clip in s.waiting_for(AggregateRound).clips}
    s.do_slow_work()
    assert s.engine.state.version == 1


def test_all_leases_of_some_rounds_have_one_seed_and_the_next_another() -> None:
    config, draws = small_config(inner=recipe(trunk="lora", lora_epoch_rounds=3)), Draws(b"s" * 16)
    seeds = [lora_seed_of(config, draws, RoundNumber(number)) for number in range(1, 10)]
    assert [seeds.index(seed) for seed in seeds] == [0, 0, 0, 3, 3, 3, 6, 6, 6]
    assert lora_seed_of(small_config(), draws, RoundNumber(1)) == 0
    assert lora_seed_of(config, Draws(b"t" * 16), RoundNumber(1)) != seeds[0], "nobody knows it beforehand"
    s = Swarm(config)
    s.join("a", "b")
    assert s.lease("a").lora_seed == s.lease("b").lora_seed != 0


def test_what_was_lost_of_other_factors_is_not_named_any_more() -> None:
    s = Swarm(small_config(max_rounds=8, replicas=2, quorum=1, inner=recipe(trunk="lora", lora_epoch_rounds=2)))
    s.join("a", "b")
    first = s.lease("a")
    close_with(s, "a", "b")
    second = s.lease("a")
    assert second.residuals == left(first)
    close_with(s, "a", "b")
    third = s.lease("a")
    assert third.lora_seed != second.lora_seed
    assert third.residuals[0] == ""
    assert third.residuals[1:] == left(second)[1:], "columns are what they were"
    s.after(5.0).commit("a", third, **feeding_back(third))
    record = s.record(third.lease_id)
    assert record.carried_trunk_reach == 0.0 < record.carried_reach
    longer = dataclasses.replace(record, residuals_in=left(second), carried_reach=1e9)
    assert norm_scale(s.config, longer, TRUNK) > 1e6 * norm_scale(s.config, longer, third.blocks[1])
    s.give_back("a")
    assert s.engine.state.workers[WorkerId("a")].residual_lora_seed == third.lora_seed
    close_with(s, "b")
    assert s.lease("a").residuals == left(third, "back")


def test_the_mode_is_fixed_and_an_epoch_has_rounds() -> None:
    config = small_config()
    for key, value in (("inner.trunk", "frozen"), ("inner.lora_rank", 4)):
        with pytest.raises(ConfigError, match="fixed for the whole run"):
            with_setting(config, key, value)
    assert with_setting(config, "inner.lora_epoch_rounds", 3).inner.lora_epoch_rounds == 3
    with pytest.raises(ConfigError, match="lora_epoch_rounds"):
        check_config(small_config(inner=recipe(lora_epoch_rounds=0)))
    with pytest.raises(ConfigError, match="trunk must be one of trained, lora, frozen"):
        check_config(small_config(inner=recipe(trunk="half")))

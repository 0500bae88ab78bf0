"""Settings that change while a run goes on: from the next round on, whole or not at all."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from coordinator.engine import events as ev
from coordinator.engine.changes import FIXED, settings_of
from coordinator.engine.commands import AggregateRound, GrantLease
from coordinator.engine.config import InnerRecipe
from coordinator.engine.phases import Phase
from protocol.errors import IllegalEvent


def change(s, key, value):
    return s.handle(ev.SettingChanged(at_s=s.now_s, key=key, value=json.dumps(value)))


def to_aggregation(s, *names):
    s.after(10)
    s.submit(*names)
    assert s.phase is Phase.AGGREGATING
    return s.waiting_for(AggregateRound)


def test_a_change_counts_when_the_next_round_opens_and_leases_keep_theirs(swarm, pick):
    s = swarm()
    s.join("a", "b", "c")
    before = s.lease("a")
    change(s, "outer_learning_rate", 0.5)
    change(s, "inner.learning_rate", 0.001)
    assert s.engine.state.config.outer_learning_rate == 1.0
    assert s.engine.state.chosen_config.outer_learning_rate == 0.5
    s.ask("a")
    assert pick(GrantLease, s.log)[-1].lease.recipe.learning_rate == before.recipe.learning_rate  # the same again
    assert to_aggregation(s, "a", "b", "c").outer_learning_rate == 1.0
    s.ask("a", "b", "c")
    s.aggregated()
    state = s.engine.state
    assert (s.round, state.config.outer_learning_rate, state.next_config) == (2, 0.5, None)
    assert s.lease("a").recipe.learning_rate == pytest.approx(0.001 * before.recipe.learning_rate / 0.016, rel=0.5)
    assert to_aggregation(s, "a", "b", "c").outer_learning_rate == 0.5
    assert s.replayed().snapshot() == s.engine.snapshot()


def test_a_round_of_which_nothing_is_leased_takes_it_at_once(swarm, pick):
    """Else a run that waits for more workers than come would wait for ever."""
    s = swarm(min_workers=3)
    s.join("a", "b")
    assert s.phase is Phase.GATHERING
    change(s, "min_workers", 2)
    assert s.phase is Phase.TRAINING
    assert len(pick(GrantLease, s.log)) == 2
    change(s, "replicas", 1)
    assert s.engine.state.next_config is not None


def test_a_new_recipe_is_not_measured_by_the_norms_of_the_old_one(swarm):
    s = swarm(max_rounds=4)
    s.join("a", "b", "c")
    to_aggregation(s, "a", "b", "c")
    assert s.engine.state.norm_history
    change(s, "quorum", 1)
    s.ask("a", "b", "c")
    s.aggregated()
    assert s.engine.state.norm_history  # another quorum is no other recipe
    to_aggregation(s, "a", "b", "c")
    change(s, "inner.inner_steps", 4)
    s.ask("a", "b", "c")
    s.aggregated()
    assert s.engine.state.norm_history == {}
    assert s.lease("a").inner_steps == 4


def test_a_lower_end_is_the_end_and_a_later_one_goes_on(swarm):
    for last, over in ((1, True), (9, False)):
        s = swarm(max_rounds=2)
        s.join("a", "b", "c")
        change(s, "max_rounds", last)
        to_aggregation(s, "a", "b", "c")
        s.ask("a", "b", "c")
        s.aggregated()
        if over:
            s.do_slow_work()
            assert s.engine.state.end_reason == "all 1 rounds are done"
            with pytest.raises(IllegalEvent, match="SettingChanged while the run is over"):
                change(s, "quorum", 1)
        else:
            to_aggregation(s, "a", "b", "c")
            s.aggregated()
            assert s.round == 3


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        *((key, 1, "fixed for the whole run") for key in sorted(FIXED)),
        ("quorom", 1, "no setting"),
        ("inner", {}, "no setting"),
        ("inner.x.y", 1, "no setting"),
        ("rule.x", 1, "no setting"),
        ("quorum", "two", 'cannot be "two"'),
        ("quorum", True, "cannot be true"),
        ("quorum", 0, "must be 1 or more"),
        ("outer_learning_rate", float("nan"), "at most"),
        ("max_rounds", 10**400, "at most"),
        ("inner.inner_steps", 100_000, "training sequences"),
        ("inner.learning_rate", None, "cannot be null"),
    ],
)
def test_what_no_run_could_begin_with_is_refused_whole(swarm, key, value, words):
    s = swarm()
    s.join("a")
    with pytest.raises(IllegalEvent, match=words):  # the swarm looks that the state is as before
        change(s, key, value)
    assert s.engine.state.setting_changes == ()


def test_the_changes_are_remembered_in_order(swarm):
    s = swarm()
    s.join("a")
    change(s, "quorum", 1)
    change(s, "quorum", 3)
    change(s, "inner.final_inner_steps", 4)
    told = [(row.number, row.key, row.before, row.value) for row in s.engine.state.setting_changes]
    assert told == [
        (1, "quorum", "2", "1"),
        (2, "quorum", "1", "3"),
        (3, "inner.final_inner_steps", "null", "4"),
    ]


def test_what_is_fixed_is_fixed_once(swarm):
    s = swarm()
    s.handle(ev.SettingsFixed(at_s=0.0, settings={"codec": '"bf16"'}))
    s.handle(ev.SettingsFixed(at_s=0.0, settings={"codec": '"fp32"', "seed": "0"}))
    assert s.engine.state.fixed_settings == {"codec": '"bf16"', "seed": "0"}
    assert s.replayed().snapshot() == s.engine.snapshot()


def test_nested_tables_are_settings_under_their_whole_keys(swarm):
    config = replace(swarm().config, inner=InnerRecipe(inner_steps=5))
    values = settings_of(config)
    assert (values["inner.inner_steps"], values["screening.enabled"], values["rule"]) == (5, True, "trimmed_mean")

"""A lease names what stands in for columns that it does not hold: what its base version has, as the executor said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coordinator.engine.changes import with_setting
from coordinator.engine.commands import AggregateRound
from coordinator.engine.down_config import WHOLE, DownConfig
from coordinator.engine.records import command_from_json, command_to_json
from coordinator.engine.refreshing import down_in
from protocol.errors import ConfigError
from protocol.ids import RoundNumber, Version
from protocol.lease import AS_PUBLISHED, FrozenColumns
from tests.coordinator.engine.test_rollback import KEPT, order, play, rounds

SECOND = FrozenColumns(version=Version(1), codec="int4")


def round_with(s: Any, frozen: FrozenColumns) -> None:
    s.after(5)
    s.submit("a", "b")
    s.aggregated(frozen=frozen)


def test_leases_name_what_the_latest_version_has(swarm):
    s = swarm(min_grace_s=1.0)
    s.join("a", "b")
    assert s.lease("a").frozen == AS_PUBLISHED, "the journal of a run of before says nothing"
    round_with(s, SECOND)
    s.ask("a")
    assert (s.lease("a").base_version, s.lease("a").frozen) == (1, SECOND)
    kept = s.lease("a")
    s.ask("a")  # the same lease again
    assert s.lease("a").frozen == kept.frozen
    s.ask("b")
    round_with(s, SECOND)
    s.ask("a", "b")
    assert (s.lease("a").base_version, s.lease("a").frozen) == (2, SECOND), "as old as the executor left them"


def test_a_version_that_is_withheld_leaves_them_as_they_are(swarm):
    s = swarm(min_grace_s=1.0)
    s.join("a", "b")
    round_with(s, SECOND)
    s.ask("a", "b")
    s.after(5)
    s.submit("a", "b")
    s.aggregated(gain=-1.0, frozen=FrozenColumns(version=Version(2), codec="int8"))
    assert s.engine.state.version == 1
    assert s.engine.state.frozen == SECOND


def test_a_rollback_has_its_own(swarm):
    s = swarm(**KEPT)
    s.join("a", "b", "x")
    rounds(s, "abx", "abx")
    order(s, "x")
    play(s, "abx")
    s.aggregated(frozen=SECOND)
    own = FrozenColumns(version=Version(s.engine.state.version + 1), codec="int4")
    s.rebuilt(frozen=own)
    assert s.engine.state.frozen == own
    s.ask("a")
    assert s.lease("a").frozen == own


def test_the_outer_step_says_how_its_version_is_encoded(swarm):
    down = DownConfig(codec="bf16", frozen_codec="fp32", frozen_every=2)
    s = swarm(min_grace_s=1.0, down=down)
    s.join("a", "b")
    s.after(5)
    s.submit("a", "b")
    command = s.waiting_for(AggregateRound)
    assert command.down == down_in(s.config, RoundNumber(1)) == replace(down, frozen_every=command.down.frozen_every)
    assert command_from_json(command_to_json(command)) == command


def test_a_command_of_before_encodes_nothing():
    assert AggregateRound.__dataclass_fields__["down"].default == WHOLE


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("down.codec", "int3", "one of"),
        ("down.frozen_codec", "int3", "one of"),
        ("down.frozen_codec", "two_bit", "makes up"),
        ("down.codec", "top_k", "every value"),
        ("down.frozen_every", 0, "1 to 1000"),
        ("down.frozen_every", 1001, "1 to 1000"),
    ],
)
def test_an_encoding_that_would_not_do_is_refused(swarm, key, value, told):
    with pytest.raises(ConfigError, match=told):
        with_setting(swarm().config, key, value)
    changed = with_setting(swarm().config, "down.codec", "two_bit")
    assert changed.down == DownConfig(codec="two_bit")

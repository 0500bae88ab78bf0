"""The course of a round, phase by phase."""

from __future__ import annotations

from coordinator.engine.commands import AggregateRound, DropPayload, EndRun
from coordinator.engine.draws import Draws
from coordinator.engine.phases import Phase


def test_three_rounds_end_the_run(swarm, pick):
    s = swarm()
    s.join("a", "b", "c")
    versions: list[int] = []
    seeds: list[int] = []
    for number in (1, 2, 3):
        assert (s.round, s.phase) == (number, Phase.TRAINING)
        s.after(10)
        s.submit("a", "b")
        assert s.phase is Phase.GRACE
        s.submit("c")
        assert s.phase is Phase.AGGREGATING
        versions.append(s.waiting_for(AggregateRound).version)
        seeds.append(s.waiting_for(AggregateRound).seed)
        s.ask("a", "b", "c")
        s.aggregated()
    assert versions == [1, 2, 3]
    assert seeds == [Draws(s.secret).seed(number, "bucketing") for number in (1, 2, 3)]
    assert s.phase is Phase.FINISHING
    s.do_slow_work()
    assert s.phase is Phase.OVER
    assert pick(EndRun, s.log)[0].reason == "all 3 rounds are done"
    assert [row.val_loss for row in s.engine.state.history] == [3.0, 3.0, 3.0]
    assert [c.version for c in s.engine.state.checkpoints] == [2, 3]
    assert [v.version for v in s.engine.state.validations] == [0, 1, 2, 3]
    assert len(pick(DropPayload, s.log)) == 9
    assert s.engine.explain() == ()

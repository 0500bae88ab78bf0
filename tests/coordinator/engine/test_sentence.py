"""The run in one sentence, for the page and for commands."""

from __future__ import annotations

from coordinator.edge.headline import sentence_of
from coordinator.engine import events as ev
from coordinator.engine.hold import HoldKind
from tests.coordinator.engine.test_orders import hold, lift


class Summary:
    """As much of a summary as a sentence needs."""

    waits = ()
    standby = None


def said(s, stalled=None):
    return sentence_of(s.engine.state, Summary(), stalled)  # type: ignore[arg-type]


def test_it_says_what_matters_most(swarm):
    s = swarm()
    assert said(s).startswith("Round 1 of")
    s.join("a", "b", "c")
    assert "is being trained: 0 submissions accepted, 3 on the way" in said(s)
    hold(s, why="moving house.")
    assert "The run is paused (moving house): time stands in round 1" in said(s)
    assert "`barnraise coordinator resume`" in said(s)
    assert "takes no writes" in said(s, stalled="disk full"), "trouble goes first"
    lift(s)
    hold(s, HoldKind.DRAINING)
    assert "The run is draining: round 1 ends with the leases that are out" in said(s)
    s.after(5)
    s.submit("a", "b", "c")
    s.aggregated()
    assert "The run is drained: no lease is out, and round 2 does not begin." in said(s)
    s.handle(ev.RunStopped(at_s=s.now_s, reason="enough"))
    s.do_slow_work()
    assert said(s) == "The run is over: the operator stopped the run: enough."

"""What a volunteer is told who waits: about them, plain, and for how long."""

from __future__ import annotations

import re

import pytest

from coordinator.engine.dispatch import Hindrance
from coordinator.engine.telling import _hindered, about
from protocol.ids import WorkerId


def told(s, worker: str) -> str:
    return s.engine.wait_sentence(WorkerId(worker), s.now_s)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "about 10 s"), (44.0, "about 40 s"), (90.0, "about 2 min"), (1500.0, "about 25 min"), (7300.0, "about 2 h")],
)
def test_durations_as_people_say_them(seconds: float, words: str) -> None:
    assert about(seconds) == words


def test_who_waits_for_others_hears_how_many(swarm):
    s = swarm(min_workers=3)
    s.join("a")
    assert told(s, "a") == "Round 1 begins as soon as 3 machines are ready; with yours there are 1."
    s.join("b")
    assert told(s, "a") == "Round 1 begins as soon as 3 machines are ready; with yours there are 2."


def test_who_is_done_hears_when_the_next_round_is_expected(swarm):
    s = swarm()
    s.join("a", "b", "c", columns=4)
    s.at(20)
    s.submit("a")
    s.ask("a")
    # the others are as slow as a was, for all that is known: they should be in by now
    assert told(s, "a").startswith("Your part of round 1 is done. The next round is expected any moment, in about 10")
    s.beat("a", "b", "c")
    s.at(40)
    s.submit("b")
    # c should end as b did, but is not waited for longer than the grace
    assert told(s, "a").endswith("The next round is expected any moment, in about 20 s at the latest.")
    s.submit("c")
    assert told(s, "a") == "The work for round 1 is complete and is being merged; the next round opens right after."
    s.aggregated()
    s.ask("b", "c", "a")
    s.at(s.now_s + 20)
    s.submit("a")
    s.ask("a")
    # b and c took twice as long in the round before
    assert told(s, "a") == "Your part of round 2 is done. The next round is expected in about 20 s."


def test_before_anybody_was_measured_the_deadline_is_all_there_is_to_say(swarm):
    s = swarm(quorum=2)
    s.join("a1", "b", columns=4)
    s.enrol("a2", columns=4, owner="")
    s.join("c", columns=4, owner="anna")
    s.join("c2", columns=4, owner="anna")
    hold = "Your other machines hold what this one could take of round 1."
    assert told(s, "c2") == f"{hold} The next round opens in about 10 min at the latest."


def test_no_sentence_speaks_of_the_volunteer_as_it(swarm):
    s = swarm()
    s.join("a", "b")
    state = s.engine.state
    for hindrance in set(Hindrance) - {Hindrance.BANNED}:  # told where it is refused, to all machines of an owner
        sentence = _hindered(state, state.workers[WorkerId("a")], hindrance)
        assert re.search(r"\b[Yy]our?\b|[Rr]ound 1", sentence), hindrance
        assert not re.search(r"\bit (has|holds|offers|lost|may)\b|\bits (part|submission)\b", sentence), hindrance
        assert sentence.endswith("."), hindrance


def test_asking_for_a_sentence_changes_nothing(swarm):
    s = swarm()
    s.join("a", "b")
    before = s.engine.snapshot()
    s.engine.wait_sentence(WorkerId("a"), s.now_s + 1000.0)
    assert s.engine.snapshot() == before

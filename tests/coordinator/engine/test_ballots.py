"""What is above half: of owners, of sequences, and what one vote counts for at most."""

from __future__ import annotations

import math
from collections import Counter
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.engine.ballots import Ballot, TrunkBallot, limited_weights, vote_limit

WEIGHTS = st.lists(st.integers(1, 16).map(float), min_size=1, max_size=40)


@settings(deadline=None)
@given(WEIGHTS, st.sampled_from([1.0, 2.0, 100.0]), st.sampled_from([0.1, 0.34, 0.5, 1.0]))
def test_no_vote_is_above_its_share_nor_far_above_the_median(weights, ratio, share):
    limit = vote_limit(Counter(weights), ratio, share)
    cut = limited_weights(weights, limit)
    assert max(cut) <= ratio * median(weights) * (1 + 1e-9)
    if len(weights) * share > 1.0:
        assert max(cut) <= share * sum(cut) * (1 + 1e-6)
    else:
        assert limit == ratio * median(weights)
    # no vote is cut further than it has to be
    assert max(cut) >= min(max(weights), ratio * median(weights)) * 0.999 or (max(cut) >= share * sum(cut) * (1 - 1e-6))


def test_of_no_votes_there_is_no_limit():
    assert vote_limit({}, 2.0, 0.5) == math.inf


@pytest.mark.parametrize(
    ("due", "given_", "majority"),
    [
        ([], [], False),
        ([8.0], [], False),
        ([8.0, 8.0], [8.0], False),  # half is not above half
        ([8.0, 8.0, 8.0], [8.0, 8.0], True),
        ([16.0, 16.0, 16.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], False),  # owners, but not sequences
        ([2.0, 2.0, 1.0, 1.0, 1.0], [2.0, 2.0], False),  # sequences, but not owners
        ([4.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0], True),  # one that is heavier than the others together holds nobody up
    ],
)
def test_above_half_of_owners_and_of_sequences(due, given_, majority):
    ballot = Ballot()
    for sequences in due:
        ballot.put(sequences, 1, given=False)
    for sequences in given_:
        ballot.put(sequences, -1, given=False)
        ballot.put(sequences, 1, given=True)
    assert ballot.has_majority(2.0, 0.5) is majority


def test_an_owner_has_one_vote_on_the_trunk_however_many_machines():
    trunk = TrunkBallot()
    for machine_sequences in (8.0, 16.0, 8.0):
        trunk.put("owner anna", machine_sequences, 1, given=False)
    trunk.put("ben", 8.0, 1, given=False)
    assert (trunk.ballot.due_count, trunk.ballot.due) == (2, {16.0: 1, 8.0: 1})
    trunk.put("owner anna", 8.0, -1, given=False)
    trunk.put("owner anna", 8.0, 1, given=True)
    assert (trunk.ballot.given_count, trunk.ballot.awaited) == (1, 1)
    for sequences, given_ in ((16.0, False), (8.0, False), (8.0, True)):
        trunk.put("owner anna", sequences, -1, given=given_)
    trunk.put("ben", 8.0, -1, given=False)
    assert trunk == TrunkBallot()

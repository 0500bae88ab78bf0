"""A worker is told the stage and a sentence: what was measured, and against what, stays with the operator."""

import re
import string

import pytest

from coordinator.engine import reasons
from coordinator.engine.reasons import Case, Reason, accepted, rejected, told
from coordinator.engine.stages import _AS_IT_STANDS, _IN_OTHER_WORDS, Stage, stage_of, told_to_worker, verdict_told

# What a lease says itself, or its worker's clock does, or what a person plans by.
SAYABLE = {
    "round", "rounds", "late_s", "silent_s", "most_s", "given_s", "needed_s", "left_s", "deadline_s", "seconds",
    "done", "leased", "column", "columns", "stragglers", "awaited", "version",
}  # fmt: skip
MEASURED = {"norm", "base", "median", "ratio", "gain", "error", "doubt", "least", "share", "in_row", "tries",
            "trunk", "refused", "judged", "auditors"}  # fmt: skip
SENTINELS = {name: 700_001.0 + 7 * number for number, name in enumerate(sorted(SAYABLE | MEASURED | {"most"}))}


def names_in(case: Case) -> set[str]:
    """Figures that the operator's sentence of `case` shows."""
    template = reasons._SENTENCES.get(case, "{gain}{error}{doubt}{least}{share}{median}")
    fields = {field for _, field, _, _ in string.Formatter().parse(template) if field}
    return fields - {"about", "said", "ending", "still_out"}


def numbers_in(text: str) -> set[float]:
    return {float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)}


@pytest.mark.parametrize("case", Case)
def test_no_case_tells_a_worker_what_was_measured(case):
    sentence = told_to_worker(Reason(case=case, figures=dict(SENTINELS), about="a few words"))
    assert sentence
    secret = {value for name, value in SENTINELS.items() if name in MEASURED}
    if case not in _AS_IT_STANDS:  # `most` is a limit of norms there, and one of rounds elsewhere
        secret.add(SENTINELS["most"])
    assert not numbers_in(sentence) & secret
    assert numbers_in(sentence) <= set(SENTINELS.values())


@pytest.mark.parametrize("case", sorted(_AS_IT_STANDS))
def test_what_is_said_as_it_stands_names_only_what_the_worker_knows(case):
    assert names_in(case) <= SAYABLE | {"most"}


@pytest.mark.parametrize("case", sorted(_IN_OTHER_WORDS))
def test_other_words_hold_no_figure(case):
    assert not re.search(r"\d", _IN_OTHER_WORDS[case])


def test_every_case_that_a_submission_meets_has_words_of_its_own():
    """A case that is added needs a sentence: `it did not pass the run's checks` helps nobody."""
    assert set(Case) - _AS_IT_STANDS - set(_IN_OTHER_WORDS) == {Case.AS_TOLD, Case.SET_ASIDE, Case.SHARE_REFUSED}


def test_every_key_has_its_stage():
    keys = {value for name, value in vars(reasons).items() if name.isupper() and isinstance(value, str)}
    for key in keys:
        assert f"(stage: {stage_of(rejected(key, Case.SAME_BYTES))})" in verdict_told(rejected(key, Case.SAME_BYTES))
    assert stage_of(rejected(reasons.NORM_TOO_LARGE, Case.NORM_OVER_MEDIAN)) is Stage.NORMS
    assert stage_of(rejected(reasons.HELDOUT_LOSS_ROSE, Case.GAIN_UNDER_LEAST)) is Stage.GAIN


def test_a_sentence_that_an_older_release_wrote_is_not_repeated():
    old = "norm 9.7 of trunk is 9.7 times the running median"
    assert told(Reason(case=Case.AS_TOLD, about=old)) == old
    assert told_to_worker(Reason(case=Case.AS_TOLD, about=old)) == "it did not pass the run's checks"


def test_a_worker_that_is_set_aside_hears_for_how_long_and_not_after_how_many():
    why = Reason(case=Case.SET_ASIDE, figures={"in_row": 3.0, "rounds": 5.0, "seconds": 900.0}, about="norm_too_large")
    sentence = told_to_worker(why)
    assert "5 rounds or 900 s" in sentence
    assert "stage norms" in sentence
    assert "3" not in sentence


def test_an_accepted_submission_hears_nothing_of_its_gain():
    assert verdict_told(accepted(Case.GAIN, gain=0.0512, error=0.01, doubt=0.02)) == "nothing was found against it"

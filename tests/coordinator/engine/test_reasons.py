"""Sentences are made of keys and figures: each case has one, and what it says is what was found."""

import math

import pytest

from coordinator.engine.reasons import Case, Reason, accepted, reason, told


@pytest.mark.parametrize("case", Case)
def test_every_case_has_a_sentence_even_where_figures_are_missing(case):
    sentence = told(Reason(case=case, about="something {odd}"))
    assert sentence
    assert "{" not in sentence.replace("{odd}", "")


@pytest.mark.parametrize(
    ("gain", "error", "sentence"),
    [
        (0.05, 0.01, "part of a step along it lowers held-out loss by 0.05 ± 0.01 nats a token"),
        (0.05, 0.0, "part of a step along it lowers held-out loss by 0.05 nats a token"),
        (
            0.0002,
            0.0005,
            "part of a step along it lowers held-out loss by 0.0002 ± 0.0005 nats a token: no more than the error of "
            "measuring it, so neither a gain nor a loss",
        ),
        (
            -0.0002,
            0.0005,
            "part of a step along it raises held-out loss by 0.0002 ± 0.0005 nats a token: no more than the error of "
            "measuring it, so neither a gain nor a loss",
        ),
        (-0.05, 0.01, "part of a step along it raises held-out loss by 0.05 ± 0.01 nats a token"),
    ],
)
def test_a_gain_a_rise_or_neither(gain, error, sentence):
    assert accepted(Case.GAIN, gain=gain, error=error, doubt=2.0 * error).reason == sentence


@pytest.mark.parametrize("gain", [-1e9, -1e-4, -0.0, 0.0, 1e-4, math.nan])
def test_no_loss_is_lowered_by_less_than_nothing(gain):
    for case in (Case.GAIN, Case.GAIN_UNDER_LEAST, Case.GAIN_UNDER_MEDIAN):
        assert "by -" not in told(reason(case, gain=gain, error=1e-3, doubt=2e-3, least=0.0, share=0.25, median=0.1))


def test_a_sentence_of_before_is_told_as_it_was():
    assert told(Reason(case=Case.AS_TOLD, about="lowers {it}")) == "lowers {it}"

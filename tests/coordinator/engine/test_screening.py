"""Verdicts: each with its key, its numbers, and its counterexample next to the threshold."""

from __future__ import annotations

import math
from statistics import median

import pytest

from coordinator.engine import pacing, screening
from coordinator.engine.config import ScreeningConfig
from coordinator.engine.events import BlockNorm, SubmissionMeasured
from coordinator.engine.medians import medians_of
from coordinator.engine.phases import Phase
from coordinator.engine.rows import SeenNorm
from protocol.ids import TRUNK, BlockId, LeaseId, WorkerId, column_block


def seen(*norms, trusted=()):
    """Norms of as many people."""
    return tuple(SeenNorm(person=place, norm_l2=norm, trusted=place in trusted) for place, norm in enumerate(norms))


HISTORY = {
    TRUNK: seen(1.0, 1.0, 1.0, 1.2),
    column_block(0): seen(0.5, 0.5, 0.5, 0.5),
    column_block(1): seen(0.01, 0.01, 0.01, 0.01),
}


def verdict_on(
    gain=0.05, malformed="", gains=(), steps_share=1.0, enabled=True, history=HISTORY, gain_se=0.0, base=0.0, **norms
):
    values = {
        TRUNK: 1.0,
        column_block(0): 0.5,
        column_block(1): 0.01,
        **{k.replace("_", "."): v for k, v in norms.items()},
    }
    given = tuple(BlockNorm(block=BlockId(block), norm_l2=value, base_l2=base) for block, value in values.items())
    event = SubmissionMeasured(
        at_s=0.0,
        command_id="",
        lease_id=LeaseId("r1.1"),
        malformed=malformed,
        norms=given,
        heldout_gain=gain,
        heldout_gain_se=gain_se,
    )
    return screening.judge(
        ScreeningConfig(enabled=enabled),
        event,
        norms=given,
        person=99,
        medians=medians_of(history),
        gains_median=median(gains) if len(gains) >= screening.MIN_GAINS else None,
        gain_spread=0.0,
        steps_share=steps_share,
    )


def test_the_noise_of_the_measurement_speaks_for_the_worker():
    assert verdict_on(gain=-0.004, gain_se=0.003).accepted
    assert verdict_on(gain=-0.01, gain_se=0.003).key == "heldout_loss_rose"
    assert verdict_on(gain=0.009, gain_se=0.004, gains=(0.06, 0.06, 0.06)).accepted
    assert verdict_on(gain=0.009, gain_se=0.001, gains=(0.06, 0.06, 0.06)).key == "heldout_gain_too_small"
    assert verdict_on(gain=-0.2, gain_se=1.0).key == "heldout_loss_rose"  # harm to few sequences, or spoilt rows
    assert verdict_on(gain=-0.004, gain_se=math.nan).key == "heldout_loss_rose"


def test_a_first_submission_is_held_against_the_weights_themselves():
    assert verdict_on(history={}, trunk=1e30, gain=0.24).accepted  # nothing to compare with
    judged = verdict_on(history={}, trunk=1e30, gain=0.24, base=30.0)
    assert judged.key == "norm_too_large"
    assert "over 30 times that of the weights it would change (30)" in judged.reason
    assert verdict_on(history={}, trunk=899.0, base=30.0).accepted


@pytest.mark.parametrize(
    ("facts", "key"),
    [
        ({}, ""),
        ({"malformed": "6 tensors of 7"}, "malformed"),
        ({"trunk": float("nan")}, "non_finite"),
        ({"column_0": float("inf")}, "non_finite"),
        ({"trunk": 2.99}, ""),
        ({"trunk": 3.01}, "norm_too_large"),
        ({"trunk": 0.26}, ""),
        ({"trunk": 0.24}, "norm_too_small"),
        ({"column_0": 4.4}, ""),
        ({"column_0": 4.6}, "norm_too_large"),
        ({"column_0": 0.0}, ""),  # no token reached it
        ({"column_1": 0.5}, ""),  # now many did: as large as other columns' norms
        ({"column_1": 4.6}, "norm_too_large"),
        ({"gain": 0.0}, ""),
        ({"gain": -0.001}, "heldout_loss_rose"),
        ({"gain": float("nan")}, "heldout_loss_rose"),
        ({"gain": float("-inf")}, "heldout_loss_rose"),
        ({"gain": 0.014, "gains": (0.05, 0.06)}, ""),
        ({"gain": 0.013, "gains": (0.05, 0.06)}, "heldout_gain_too_small"),
        ({"gain": 0.004, "gains": (0.05, 0.06), "steps_share": 0.25}, ""),
        ({"gain": 0.002, "gains": (0.05,)}, ""),  # one other says nothing yet
        ({"trunk": 99.0, "history": {}}, ""),  # nor does an empty history
        ({"trunk": 99.0, "gain": -1.0, "enabled": False}, ""),
        ({"trunk": float("nan"), "enabled": False}, "non_finite"),
        ({"malformed": "x", "enabled": False}, "malformed"),
    ],
)
def test_verdicts(facts, key):
    verdict = verdict_on(**facts)
    assert verdict.key == key
    assert verdict.accepted == (key == "")
    assert verdict.reason


def test_words_carry_the_numbers():
    assert verdict_on(trunk=9.7).reason == (
        "norm 9.7 of trunk, at common steps, is 9.7 times the running median 1 (at most 3)"
    )
    assert "raises held-out loss by 0.11 ± 0.02 nats a token" in verdict_on(gain=-0.11, gain_se=0.02).reason


def test_norms_are_compared_at_common_steps(swarm):
    s = swarm(columns=1, heartbeat_interval_s=100.0)
    s.join("a", "b", "c", "d")
    s.at(10)
    s.submit("a", "b", "c")
    s.ask("a", "b", "c")
    s.at(12)
    assert s.phase is Phase.GRACE
    s.submit("d", norm=2.9)
    assert s.record("r1.4").verdict.accepted
    s.ask("d")
    s.aggregated()
    s.join("e")
    s.at(17)
    s.ask("e")
    s.join("f")
    lease = s.lease("f")
    assert lease.inner_steps < 8
    rate = lease.recipe.learning_rate / s.config.inner.learning_rate
    scale = pacing.norm_scale(s.config, lease) * rate
    s.after(5)
    s.submit("f", norm=3.1 / scale)
    assert s.record(lease.lease_id).verdict.key == "norm_too_large"


def test_honest_history_only(swarm):
    s = swarm()
    s.join("a", "b", "c", "d", "e")
    s.submit("a", "b", "c")
    s.submit("d", norm=1e6)
    assert s.engine.state.norm_history == {}  # nothing counts before the round closes
    s.submit("e")
    assert [(one.person, one.norm_l2) for one in s.engine.state.norm_history[TRUNK]] == [(n, 1.0) for n in (0, 1, 2, 4)]
    assert s.record(s.lease("d").lease_id).verdict.key == "norm_too_large"


def test_set_aside_after_three_in_a_row_and_back_after_the_rounds(swarm):
    s = swarm(max_rounds=20, quarantine_rounds=2)
    s.join("a", "b", "x")
    for _ in range(3):
        s.after(5)
        s.submit("a", "b")
        s.submit("x", gain=-1.0)
        s.ask("a", "b", "x")
        s.aggregated()
    record = s.engine.state.workers[WorkerId("x")]
    assert record.rejected == {"heldout_loss_rose": 3}
    assert s.round == 4
    assert "no leases for 2 rounds" in s.engine.wait_reason(WorkerId("x"))
    for _ in range(2):
        assert s.lease("x").round == 3
        s.after(5)
        s.submit("a", "b")
        s.ask("a", "b", "x")
        s.aggregated()
    assert (s.round, s.lease("x").round) == (6, 6)


def test_two_lies_then_one_truth_end_set_aside(swarm):
    s = swarm(max_rounds=20)
    s.join("a", "b", "x")
    for gain in (-1.0, -1.0, 0.05, -1.0):
        assert s.engine.state.workers[WorkerId("x")].quarantine is None
        s.after(5)
        s.submit("a", "b")
        s.submit("x", gain=gain)
        s.ask("a", "b", "x")
        s.aggregated()
    aside = s.engine.state.workers[WorkerId("x")].quarantine
    assert aside is not None
    assert "3 of its last 4 submissions were refused (the latest: heldout_loss_rose)" in s.engine.wait_reason(
        WorkerId("x")
    )


def test_one_refusal_in_a_long_honest_record_sets_nobody_aside(swarm):
    s = swarm(max_rounds=40)
    s.join("a", "b", "x")
    for gain in (0.05, 0.05, 0.05, -1.0, 0.05, 0.05, 0.05, 0.05, -1.0, 0.05, 0.05, 0.05, 0.05, 0.05, -1.0):
        s.after(5)
        s.submit("a", "b")
        s.submit("x", gain=gain)
        s.ask("a", "b", "x")
        s.aggregated()
    record = s.engine.state.workers[WorkerId("x")]
    assert (record.quarantine, record.rejected) == (None, {"heldout_loss_rose": 3})


def test_a_refused_worker_gets_no_second_try_in_the_round(swarm):
    s = swarm()
    s.join("a", "x")
    s.submit("x", gain=-1.0)
    assert s.ask("x") == []
    assert "was refused; it may take part in the next" in s.engine.wait_reason(WorkerId("x"))

"""What a round's number decides: bounded, one way only, exact at both ends; and who else goes by it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.engine.config import (
    SCHEDULES,
    EngineConfig,
    InnerRecipe,
    check_config,
    most_recipe_steps,
)
from coordinator.engine.engine import Engine
from coordinator.engine.schedules import learning_rate, recipe_steps
from protocol.errors import ConfigError
from protocol.ids import RoundNumber, RunId
from protocol.recipe import MAX_INNER_STEPS

SECRET = b"a secret of the tests"
quick = settings(max_examples=150, deadline=None, derandomize=True)


def config_of(max_rounds: int = 10, **inner: object) -> EngineConfig:
    recipe = InnerRecipe(**inner)  # type: ignore[arg-type]
    return EngineConfig(run_id=RunId("run"), columns=1, train_sequences=10**9, max_rounds=max_rounds, inner=recipe)


def rates_of(config: EngineConfig) -> list[float]:
    return [learning_rate(config, RoundNumber(n)) for n in range(1, config.max_rounds + 1)]


def steps_of(config: EngineConfig) -> list[int]:
    return [recipe_steps(config, RoundNumber(n)) for n in range(1, config.max_rounds + 1)]


@st.composite
def configs(draw: st.DrawFn) -> EngineConfig:
    rounds = draw(st.integers(1, 60))
    return config_of(
        rounds,
        learning_rate=draw(st.sampled_from([1e-5, 4e-3, 1.0])),
        schedule=draw(st.sampled_from(SCHEDULES)),
        final_lr_share=draw(st.sampled_from([1e-3, 0.1, 0.3, 1.0])),
        decay_share=draw(st.sampled_from([0.01, 0.2, 0.5, 1.0])),
        warmup_rounds=draw(st.integers(0, rounds - 1)),
        inner_steps=draw(st.integers(1, 300)),
        final_inner_steps=draw(st.one_of(st.none(), st.integers(1, 300))),
    )


@quick
@given(configs())
def test_a_rate_rises_once_falls_once_and_ends_exactly(config):
    check_config(config)
    inner, rates = config.inner, rates_of(config)
    warm, after = rates[: inner.warmup_rounds], rates[inner.warmup_rounds :]
    assert all(left < right for left, right in pairwise([*warm, after[0]]))
    assert after[0] == inner.learning_rate
    assert all(left >= right for left, right in pairwise(after))
    assert all(0 < rate <= inner.learning_rate for rate in rates)
    if inner.schedule == "constant":
        assert set(after) == {inner.learning_rate}
    elif len(after) > 1:
        assert after[-1] == inner.learning_rate * inner.final_lr_share


@quick
@given(configs())
def test_steps_go_one_way_and_end_exactly(config):
    steps, inner = steps_of(config), config.inner
    final = inner.inner_steps if inner.final_inner_steps is None else inner.final_inner_steps
    assert steps[0] == inner.inner_steps
    assert len(steps) == 1 or steps[-1] == final
    assert steps in (sorted(steps), sorted(steps, reverse=True))
    assert max(steps) <= most_recipe_steps(config)
    assert min(steps) >= 1


def test_a_schedule_of_steps_goes_by_equal_ratios():
    assert steps_of(config_of(5, inner_steps=8, final_inner_steps=128)) == [8, 16, 32, 64, 128]
    assert steps_of(config_of(4, inner_steps=64, final_inner_steps=8)) == [64, 32, 16, 8]


def test_a_linear_rate_that_falls_late_is_constant_and_then_decays():
    rates = rates_of(config_of(11, learning_rate=1.0, schedule="linear", decay_share=0.4, final_lr_share=0.2))
    assert rates[:7] == [1.0] * 7
    assert rates[7:] == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_a_warm_start_ramps_up_to_the_rate():
    rates = rates_of(config_of(5, learning_rate=1.0, schedule="constant", warmup_rounds=3))
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        ({"schedule": "exponential"}, "one of cosine, linear, constant, got 'exponential'"),
        ({"final_lr_share": 1.5}, "final_lr_share"),
        ({"final_lr_share": math.nan}, "final_lr_share"),
        ({"decay_share": 0.0}, "decay_share"),
        ({"warmup_rounds": 10}, r"below max_rounds \(10\), got 10"),
        ({"warmup_rounds": -1}, "warmup_rounds"),
        ({"final_inner_steps": 0}, "final_inner_steps must be 1 or more, got 0"),
        ({"final_inner_steps": MAX_INNER_STEPS + 1}, f"at most {MAX_INNER_STEPS} inner steps"),
        ({"inner_steps": 4, "final_inner_steps": 8, "batch_sequences": 2}, "one lease needs 32 training sequences"),
        ({"inner_steps": 8, "final_inner_steps": 4, "batch_sequences": 2}, "one lease needs 32 training sequences"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_with_the_reason(inner, words):
    config = replace(config_of(10, **inner), train_sequences=15)
    with pytest.raises(ConfigError, match=words):
        check_config(config)


@pytest.mark.parametrize("share", [0.5, 2.5, math.nan])
def test_a_share_of_steps_that_caps_could_not_follow_is_refused(share):
    with pytest.raises(ConfigError, match="most_steps_share must be 1 to 2"):
        check_config(replace(config_of(), most_steps_share=share))


# ---- a run goes by it


def growing(swarm, **changes):
    """Six rounds of 4, 8, 16, 32, 64, 128 steps."""
    inner = InnerRecipe(inner_steps=4, final_inner_steps=128, batch_sequences=1)
    return swarm(max_rounds=6, quorum=3, heartbeat_interval_s=1e6, lease_ttl_s=1e6, round_deadline_s=1e6,
                 inner=inner, **changes)  # fmt: skip


def play_round(s, *, slow_by: float = 4.0, norm_a_step: float = 0.1) -> dict[str, int]:
    """Three workers do a round of one second a step, c at its own pace; norms and gains grow with steps."""
    s.ask("a", "b", "c")
    leases = {name: s.lease(name) for name in "abc"}
    began_s = s.now_s
    takes = {name: lease.inner_steps * (slow_by if name == "c" else 1.0) for name, lease in leases.items()}
    for name in sorted(leases, key=takes.__getitem__):
        lease = leases[name]
        s.at(began_s + takes[name])
        s.commit(name, lease)
        s.upload(name, lease)
        s.measured(lease.lease_id, norm=norm_a_step * lease.inner_steps, gain=0.001 * lease.inner_steps)
    if s.engine.pending:
        s.do_slow_work()
    return {name: lease.inner_steps for name, lease in leases.items()}


def test_a_run_leases_the_rounds_own_steps_and_the_slow_one_its_share(swarm):
    s = growing(swarm)
    s.enrol("a", "b", "c")
    rounds = [play_round(s, slow_by=8.0) for _ in range(6)]
    assert [found["a"] for found in rounds] == [4, 8, 16, 32, 64, 128]
    assert [found["c"] for found in rounds] == [4, 1, 2, 4, 8, 16]
    rejected = s.engine.state.totals.submissions_rejected
    assert not rejected, "an honest norm or gain was held against another round's number of steps"
    assert s.engine.state.version == 6


def test_a_snapshot_in_mid_schedule_goes_on_where_it_was(swarm):
    s = growing(swarm)
    s.enrol("a", "b", "c")
    for _ in range(3):
        play_round(s)
    s.engine = Engine.restore(json.loads(json.dumps(s.engine.snapshot())), SECRET)
    s.engine.due(s.now_s)
    rounds = [play_round(s) for _ in range(3)]
    assert [found["a"] for found in rounds] == [32, 64, 128]
    assert [found["c"] for found in rounds] == [8, 16, 32]
    assert s.lease("a").recipe.learning_rate == pytest.approx(
        s.config.inner.learning_rate * s.config.inner.final_lr_share
    )

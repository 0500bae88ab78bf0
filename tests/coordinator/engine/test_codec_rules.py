"""Combinations of codec, rule and audits that a run does not begin with, and is not changed to."""

from __future__ import annotations

import dataclasses

import pytest

from aggregation.names import RULES
from coordinator.engine.changes import with_setting
from coordinator.engine.codec_rules import LIMITED
from coordinator.engine.config import AuditConfig, check_config
from coordinator.settings import RunSettings
from protocol.codecs import CODECS
from protocol.errors import ConfigError
from tests.coordinator.engine.conftest import small_config
from tests.protocol.test_made_up_codec import EightBits


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODECS, "eight_bits", EightBits())


def test_every_rule_of_the_table_is_one() -> None:
    assert all(set(limited.rules) <= set(RULES) for limited in LIMITED.values())


@pytest.mark.parametrize("rule", ["trimmed_mean", "median", "nnm+multi_krum"])
def test_a_rule_that_looks_at_coordinates_is_refused_for_chosen_ones(rule: str) -> None:
    sparse = small_config(codec="top_k", rule="multi_krum")
    check_config(sparse)
    with pytest.raises(ConfigError, match=r"top_k does not go with rule .*; use mean or multi_krum"):
        check_config(dataclasses.replace(sparse, rule=rule))
    check_config(dataclasses.replace(sparse, rule=rule, codec="bf16"))


def test_audits_that_could_not_be_answered_are_refused() -> None:
    stateful = small_config(codec="eight_bits")
    check_config(stateful)
    with pytest.raises(ConfigError, match="audits do not open that yet"):
        with_setting(stateful, "audits.budget", 0.5)
    with pytest.raises(ConfigError, match="an open run is audited"):
        check_config(dataclasses.replace(stateful, open_run=True))
    check_config(dataclasses.replace(stateful, codec="bf16", open_run=True, audits=AuditConfig(budget=1.0)))


def test_init_says_so() -> None:
    with pytest.raises(ValueError, match=r"engine: Value error, codec eight_bits|audits do not open that yet"):
        RunSettings(preset="tiny", codec="eight_bits", engine={"audits": {"budget": 1.0}})
    RunSettings(preset="tiny", codec="eight_bits")

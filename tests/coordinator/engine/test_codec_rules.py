"""Combinations of codec and rule that a run does not begin with, and is not changed to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from aggregation.names import RULES
from coordinator.engine.codec_rules import LIMITED, MISSED
from coordinator.engine.config import check_config
from coordinator.run.folder import init_run
from coordinator.settings import RunSettings, check_engine
from protocol.codecs import CODECS
from protocol.errors import ConfigError
from tests.coordinator.engine.conftest import small_config


def test_every_rule_of_the_table_is_one() -> None:
    assert all(set(limited.rules) <= set(RULES) for limited in LIMITED.values())


@pytest.mark.parametrize("rule", ["trimmed_mean", "median", "nnm+multi_krum"])
def test_a_rule_that_looks_at_coordinates_is_refused_for_chosen_ones(rule: str) -> None:
    sparse = small_config(codec="top_k", rule="multi_krum")
    check_config(sparse)
    with pytest.raises(ConfigError, match=r"top_k does not go with rule .*; use mean or multi_krum"):
        check_config(dataclasses.replace(sparse, rule=rule))
    check_config(dataclasses.replace(sparse, rule=rule, codec="bf16"))


def test_init_says_so() -> None:
    with pytest.raises(ValueError, match="top_k does not go with rule trimmed_mean"):
        check_engine({}, "top_k")


def test_a_codec_that_missed_its_goal_is_refused_at_init_with_the_figure(tmp_path: Path) -> None:
    assert MISSED.keys() <= CODECS.keys()
    settings = RunSettings(preset="tiny", codec="top_k", engine={"rule": "mean"})
    with pytest.raises(ConfigError, match=r"25 % of the held-out loss.* use one of ternary, .*`--accept-lossy`"):
        init_run(tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()

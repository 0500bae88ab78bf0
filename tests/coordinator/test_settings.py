"""Settings: one frozen model, validated once, that survives its file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from aggregation import rules
from coordinator.settings import RULES, RunSettings
from protocol.errors import ConfigError
from protocol.ids import RunId


@given(st.text(min_size=1, max_size=64), st.floats(0, 1e6), st.integers(0, 2**62), st.lists(st.text(max_size=9)))
def test_settings_survive_their_file(name: str, gather_s: float, seed: int, hosts: list[str]) -> None:
    engine = {"gather_s": gather_s, "inner": {"inner_steps": 3, "adam_eps": 1e-9}, "screening": {"enabled": False}}
    settings = RunSettings(preset="tiny", name=name, seed=seed, advertised_hosts=tuple(hosts), engine=engine)
    assert RunSettings.from_toml(settings.to_toml(), "settings.toml") == settings


def test_engine_overrides_reach_the_engine() -> None:
    settings = RunSettings(preset="tiny", engine={"quorum": 1, "inner": {"inner_steps": 5}})
    config = settings.engine_config(run_id=RunId("r"), columns=8, train_sequences=100)
    assert (config.quorum, config.columns, config.inner.inner_steps) == (1, 8, 5)
    assert config.inner.batch_sequences == 16  # what is not named keeps its default


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"quorom": 2}, "unknown engine setting `quorom`"),
        ({"columns": 2}, "follows from the model"),
        ({"inner": {"steps": 1}}, "unknown setting `inner.steps`"),
        ({"gather_s": float("nan")}, "gather_s"),
        ({"lease_ttl_s": -1.0}, "lease_ttl_s"),
        ({"replicas": 0}, "replicas"),
        ({"rule": 3}, "rule"),
        ({"rule": "krum"}, "rule"),
    ],
)
def test_wrong_engine_settings_are_named(engine: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RunSettings(preset="tiny", engine=engine)


def test_exactly_one_model() -> None:
    with pytest.raises(ValidationError, match="exactly one"):
        RunSettings()
    with pytest.raises(ValidationError, match="exactly one"):
        RunSettings(preset="tiny", checkpoint="folder")


def test_rules_are_those_of_the_aggregation_room() -> None:
    assert RULES == rules.RULES


def test_a_broken_file_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"settings.toml is not TOML"):
        RunSettings.from_toml("preset = ", "settings.toml")
    with pytest.raises(ConfigError, match="colour"):
        RunSettings.from_toml('preset = "tiny"\ncolour = "red"\n', "settings.toml")


def test_wildcards_are_listened_on_and_never_advertised() -> None:
    settings = RunSettings(preset="tiny", host="0.0.0.0", advertised_hosts=("swarm.example.org",))
    assert settings.join_host() == "swarm.example.org"
    assert "0.0.0.0" not in settings.certificate_hosts()
    assert RunSettings(preset="tiny", host="::").join_host() == "127.0.0.1"

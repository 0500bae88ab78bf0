"""Settings: one frozen model, validated once, that survives its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from aggregation.names import RULES, parse_rule
from coordinator.beginning import GOING_ON, going_on, merged
from coordinator.datasets import prepare
from coordinator.engine.events import RunCreated
from coordinator.engine.records import event_from_json
from coordinator.run.folder import init_run
from coordinator.settings import RunSettings, engine_overrides
from coordinator.store.journal import Journal
from protocol.errors import ConfigError, LocalError
from protocol.ids import RunId
from tests.served import write_text

_HOSTS = st.lists(st.sampled_from(["swarm.example.org", "Bücher.example:7600", "[2001:db8::5]:1", "192.0.2.7"]))


@given(st.text(min_size=1, max_size=64), st.floats(0, 1e6), st.integers(0, 2**62), _HOSTS)
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
        ({"outer_learning_rate": 0.0}, "outer_learning_rate must be above 0"),
        ({"outer_momentum": 1.0}, "outer_momentum must be 0 to below 1"),
        ({"rule": 3}, "rule"),
        ({"inner": {"schedule": "step"}}, "schedule must be one of cosine, linear, constant"),
        ({"inner": {"final_inner_steps": 0}}, "final_inner_steps must be 1 or more"),
        ({"inner": {"learning_rate": "fast"}}, "inner.learning_rate: expected a number, got 'fast'"),
        ({"max_rounds": 5, "inner": {"warmup_rounds": 5}}, r"warmup_rounds must be below max_rounds \(5\)"),
        ({"most_steps_share": 3.0}, "most_steps_share must be 1 to 2"),
        ({"rule": "krumm"}, "`rule` must be mean, median, .*; got 'krumm'"),
        ({"rule": "nnm+mean"}, "rule"),
        ({"rule": "nnm+nnm+krum"}, "rule"),
        ({"rule": "krum+nnm"}, "rule"),
        ({"rule": ""}, "rule"),
    ],
)
def test_wrong_engine_settings_are_named(engine: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RunSettings(preset="tiny", engine=engine)


def test_a_setting_of_none_is_not_set_and_survives_the_file() -> None:
    settings = RunSettings(preset="tiny", engine={"quorum": 2, "inner": {"final_inner_steps": None}})
    assert settings.engine == {"quorum": 2, "inner": {}}
    assert RunSettings.from_toml(settings.to_toml(), "settings.toml") == settings


def test_assignments_become_an_engine_table() -> None:
    given = ["inner.learning_rate=3e-3", "inner.schedule=linear", "rule = 'mean'", "screening.enabled=false"]
    table = engine_overrides([*given, "quorum=2", "quorum=3"])
    assert table == {
        "inner": {"learning_rate": 3e-3, "schedule": "linear"},
        "rule": "mean",
        "screening": {"enabled": False},
        "quorum": 3,
    }
    config = RunSettings(preset="tiny", engine=table).engine_config(run_id=RunId("r"), columns=8, train_sequences=100)
    assert (config.inner.learning_rate, config.inner.schedule, config.quorum) == (3e-3, "linear", 3)


@pytest.mark.parametrize("text", ["quorum", "=3", "inner=3", "inner.x.y=3", "quorum.x=1", "", "inner.=3"])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        engine_overrides([text])


@given(st.text(max_size=30))
def test_any_value_is_read_or_stands_for_itself(value: str) -> None:
    table = engine_overrides([f"rule={value}"])
    assert table.keys() == {"rule"}


def test_overrides_go_setting_by_setting() -> None:
    table = {"quorum": 1, "inner": {"inner_steps": 5, "batch_sequences": 2}}
    overrides = {"quorum": 2, "inner": {"inner_steps": 7}, "screening": {"enabled": False}}
    expected = {"quorum": 2, "inner": {"inner_steps": 7, "batch_sequences": 2}, "screening": {"enabled": False}}
    assert merged(table, overrides) == expected


def test_exactly_one_model() -> None:
    with pytest.raises(ValidationError, match="exactly one"):
        RunSettings()
    with pytest.raises(ValidationError, match="exactly one"):
        RunSettings(preset="tiny", checkpoint="folder")


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_that_aggregation_knows_can_be_set_and_no_other(rule: str) -> None:
    assert RunSettings(preset="tiny", engine={"rule": rule}).engine["rule"] == rule
    for odd in (f"{rule} ", rule.upper(), f"+{rule}", f"bucketing+nnm+{rule}"):
        with pytest.raises(LocalError):
            parse_rule(odd)
        with pytest.raises(ValidationError, match="rule"):
            RunSettings(preset="tiny", engine={"rule": odd})


def test_a_broken_file_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"settings.toml is not TOML"):
        RunSettings.from_toml("preset = ", "settings.toml")
    with pytest.raises(ConfigError, match="colour"):
        RunSettings.from_toml('preset = "tiny"\ncolour = "red"\n', "settings.toml")


def test_wildcards_are_listened_on_and_never_advertised() -> None:
    settings = RunSettings(preset="tiny", host="0.0.0.0", advertised_hosts=("swarm.example.org",))
    assert settings.join_address(7465) == ("swarm.example.org", 7465)
    assert "0.0.0.0" not in settings.certificate_hosts()
    assert RunSettings(preset="tiny", host="::").join_address(1) == ("127.0.0.1", 1)


def test_what_is_advertised_has_one_form_and_may_name_another_port() -> None:
    given = ("[2001:DB8::5]:443", "BÜCHER.example.", "192.0.2.7:7600")
    settings = RunSettings(preset="tiny", host="[::]", advertised_hosts=given)
    assert settings.host == "::"
    assert settings.advertised_hosts == ("[2001:db8::5]:443", "xn--bcher-kva.example", "192.0.2.7:7600")
    assert settings.join_address(7465) == ("2001:db8::5", 443)
    assert settings.certificate_hosts() == (
        "2001:db8::5", "xn--bcher-kva.example", "192.0.2.7", "localhost", "127.0.0.1", "::1"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"advertised_hosts": ("fe80::1%eth0",)}, "means nothing on another"),
        ({"advertised_hosts": ("ok.example", "0.0.0.0")}, "nobody can dial"),
        ({"advertised_hosts": ("",)}, "it is empty"),
        ({"advertised_hosts": ("example.org:0",)}, "port must be 1 to 65535"),
        ({"advertised_hosts": ("https://example.org",)}, "is not a port|no scheme"),
        ({"host": "fe80::1%eth0"}, "means nothing on another"),
        ({"host": ""}, "it is empty"),
    ],
)
def test_an_address_that_cannot_be_used_later_is_refused_at_once(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RunSettings(preset="tiny", **setting)


def test_a_checkpoint_is_gone_on_with_gently_unless_told_otherwise() -> None:
    assert going_on({})["inner"] == dict(GOING_ON)
    told = going_on({"max_rounds": 9, "inner": {"learning_rate": 1.0}})
    assert told["inner"] == {**GOING_ON, "learning_rate": 1.0}
    assert told["max_rounds"] == 9
    short = RunSettings(checkpoint="somewhere", engine={"max_rounds": 2}).as_begun()
    assert "warmup_rounds" not in short.engine["inner"]
    assert RunSettings(preset="tiny").as_begun() == RunSettings(preset="tiny")


@pytest.mark.parametrize(
    ("engine", "audits"),
    [
        ({}, None),
        ({"open_run": False}, None),
        ({"open_run": True}, {"budget": 1.0}),
        ({"open_run": True, "audits": {"first": 3}}, {"budget": 1.0, "first": 3}),
        ({"open_run": True, "audits": {"budget": 0.0}}, {"budget": 0.0}),
    ],
)
def test_an_open_run_begins_with_audits_where_it_is_told_nothing_else(
    engine: dict[str, Any], audits: dict[str, Any] | None
) -> None:
    assert RunSettings(preset="tiny", engine=engine).as_begun().engine.get("audits") == audits


def test_a_run_whose_absent_experts_need_top_k_leases_no_fewer_columns(tmp_path: Path) -> None:
    """A spare for one lost column would otherwise be a lease that no worker can take."""
    (text := tmp_path / "text").mkdir()
    prepare([str(write_text(text))], dataset := tmp_path / "data")
    cases: tuple[tuple[Literal["absent", "frozen"], int], ...] = (("absent", 2), ("frozen", 1))
    for residency, least in cases:
        settings = RunSettings(preset="tiny", data=str(dataset), residency=residency)
        init_run(tmp_path / residency, settings)
        journal = Journal.open(tmp_path / residency / "journal.sqlite", writable=False)
        created = event_from_json(next(journal.read())[1])
        journal.close()
        assert isinstance(created, RunCreated)
        assert created.config.min_columns == least
    coded = RunSettings(preset="tiny", data=str(dataset), engine={"inner": {"frozen_dtype": "int4"}})
    init_run(tmp_path / "coded", coded)
    with pytest.raises(ConfigError, match=r"inner.frozen_dtype.*no experts but those that it holds"):
        init_run(tmp_path / "nothing", coded.model_copy(update={"residency": "absent"}))


@pytest.mark.parametrize("field", ["name", "data", "checkpoint"])
def test_a_name_that_settings_toml_cannot_hold_is_refused_at_once(field: str) -> None:
    given = {"preset": "tiny"} if field != "checkpoint" else {}
    with pytest.raises(ValidationError, match=r"caf\\udce9' is not UTF-8: rename it"):
        RunSettings.model_validate({**given, field: "caf\udce9"})
    assert getattr(RunSettings.model_validate({**given, field: "café"}), field) == "café"

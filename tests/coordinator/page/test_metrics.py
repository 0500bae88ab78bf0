"""Metrics by Prometheus's conventions, equal to the picture; no alert or dashboard asks for others."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from coordinator.page.metrics import metrics_text
from tests.coordinator.page.pictures import picture

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
LABELS = {"state", "phase", "health", "reason", "outcome", "run_id", "model", "codec", "release"}


def series(**state: int) -> dict[tuple[str, str], float]:
    text = metrics_text(picture(**state), watching=3, dropped=1).decode()
    return {
        (sample.name, ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_values_are_the_pictures() -> None:
    view, found = picture(), series()
    assert found["barnraise_round", ""] == view.open_round.number
    assert found["barnraise_submissions_accepted_total", ""] == view.judged.accepted
    assert found["barnraise_submissions_refused_total", "reason=late"] == view.judged.refused["late"]
    assert found["barnraise_workers", "state=training"] == view.worker_states["training"]
    assert found["barnraise_heldout_loss_nats", ""] == view.losses[-1].loss
    assert found["barnraise_tokens_counted_total", ""] == view.tokens_counted
    assert found["barnraise_run_state", "state=healthy"] == 1
    assert found["barnraise_run_state", "state=trouble"] == 0
    assert found["barnraise_page_viewers", ""] == 3


def test_names_units_and_labels() -> None:
    found = series()
    ours = [name for name, _ in found if name.startswith("barnraise_")]
    assert len(ours) > 40
    for name, labels in found:
        assert not re.search(r"_(ms|kb|mb|minutes|hours|percent)(_|$)", name), "base units"
        assert {pair.split("=")[0] for pair in labels.split(",") if pair} <= LABELS
    text = metrics_text(picture(), watching=0, dropped=0).decode()
    for line in text.splitlines():
        if line.startswith("# TYPE barnraise_"):
            _, _, name, kind = line.split()
            assert name.endswith("_total") is (kind == "counter"), line


def test_no_series_is_a_workers_own() -> None:
    assert len(series(people=1000)) == len(series(people=40))
    assert b"brave-otter" not in metrics_text(picture(people=1000), watching=0, dropped=0)


def test_alerts_and_dashboard_ask_for_what_there_is() -> None:
    there = {name for name, _ in series()} | {"process_cpu_seconds_total", "process_resident_memory_bytes"}
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
    board = json.loads((DEPLOY / "grafana" / "dashboards" / "barnraise.json").read_text())
    asked = [rule["expr"] for rule in rules]
    asked += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    named = {name for expr in asked for name in re.findall(r"\b(?:barnraise|process)_\w+", expr)}
    assert len(named) > 15
    assert named <= there


def test_a_service_that_restarts_and_keeps_to_itself() -> None:
    unit = (DEPLOY / "systemd" / "barnraise-coordinator@.service").read_text()
    lines = set(unit.splitlines())
    assert {"Restart=on-failure", "NoNewPrivileges=yes", "ProtectSystem=strict", "User=barnraise"} <= lines
    assert "127.0.0.1" in unit

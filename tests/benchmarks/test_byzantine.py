"""The benchmark of liars: what it runs, what it makes of the figures, and one micro run to its end."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import byzantine, tables
from benchmarks.byzantine_rows import (
    ALONE,
    BASELINES,
    DEFENCES,
    NOBODY,
    QUICK_ATTACKS,
    SELDOM_AUDITED,
    SHARDS,
    STAGES,
    WORST,
    ByzantineCase,
    all_cases,
    misses,
    quick_cases,
    worst_cases,
)
from benchmarks.byzantine_run import Remembered
from benchmarks.report import write_results
from coordinator.settings import check_engine
from protocol.errors import ConfigError
from protocol.ids import LeaseId, RoundNumber, Version
from protocol.lease import DataRange, Lease
from protocol.recipe import Recipe
from simulator.adversaries.files import attack_named
from simulator.adversaries.table import ATTACKS


def test_another_codec_is_everybodys_and_the_controls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["byzantine", "--quick", "--attacks", "alie", "--codec", "ternary"])
    args = byzantine._arguments()
    cases = byzantine._cases(args, byzantine._checked(args), byzantine.Kept(tmp_path / "runs.jsonl", 40))
    assert {case.codec for case in (*cases, *(case.absent for case in cases))} == {"ternary"}
    monkeypatch.setattr(sys, "argv", ["byzantine", "--codec", "morse"])
    with pytest.raises(ConfigError, match="morse"):
        byzantine._checked(byzantine._arguments())


def run(case: ByzantineCase, val_loss: float, planted: float = 0.0, **more: Any) -> dict[str, Any]:
    counts = dict.fromkeys(
        ("byzantine_banned", "honest_banned", "honest_refused", "byzantine_accepted", "byzantine_refused"), 0
    )
    triggers = {"planted": planted, "natural": 0.0}
    return {"val_loss": val_loss, "triggers": triggers, "honest_accepted": 10, **counts, **more}


def rows_of(*runs: tuple[ByzantineCase, float, float]) -> list[dict[str, Any]]:
    """A table of these runs, each beside a control of loss 2 in which no trigger works."""
    known = {case: run(case, loss, planted) for case, loss, planted in runs}
    known |= {case.absent: run(case.absent, 2.0) for case, *_ in runs}
    return byzantine.table([case for case, *_ in runs], known.get)


@pytest.mark.parametrize("defence", DEFENCES)
def test_every_defence_is_a_table_of_the_engines_settings(defence: str) -> None:
    check_engine(dict(DEFENCES[defence]))


def test_the_lists_have_what_the_goals_are_about() -> None:
    every = all_cases()
    assert {(one.attack, one.shards) for one in every if one.defence == "pipeline" and one.n == 16} == {
        (attack, shards) for attack in [*ATTACKS, *(a.attack for a in every if a.attack.startswith("byzfl:"))]
        for shards in SHARDS
    }  # fmt: skip
    assert {one.attack for one in every if one.defence == "undefended"} >= set(ATTACKS)
    assert [one for one in every if (one.n, one.f, one.trusted) == (3, 2, 1)]
    assert len(quick_cases()) == 2 * len(QUICK_ATTACKS) + 2 * len(SELDOM_AUDITED) + 2 * len(ALONE)
    for case in (*every, *quick_cases()):
        attack_named(case.attack)


def test_the_ten_worst_are_those_that_cost_or_trigger_most() -> None:
    shown = rows_of(
        *((ByzantineCase(attack=name, defence="pipeline"), 2.0 + n / 100, 0.0) for n, name in enumerate(ATTACKS)),
        (ByzantineCase(attack="backdoor", defence="pipeline"), 2.0, 0.9),
    )
    cases = worst_cases(shown)
    worst = {case.attack for case in cases}
    assert worst == {*list(ATTACKS)[-WORST + 1 :], "backdoor"}
    assert {case.defence for case in cases} == {"pipeline", *BASELINES, *STAGES}
    defended = [case for case in cases if case.defence == "pipeline"]
    assert {(case.f, case.seed) for case in defended} == {(5, 0), (5, 1), (5, 2)}
    assert {(case.f, case.seed) for case in cases if case not in defended} == {(5, 0)}


def test_a_goal_holds_for_the_mean_and_one_standard_error() -> None:
    case = ByzantineCase(attack="alie", defence="pipeline", f=5)
    losses = (2.04, 2.05, 2.09)
    (row,) = rows_of(*((replace(case, seed=seed), loss, 0.0) for seed, loss in enumerate(losses)))
    assert row["seeds"] == 3
    assert row["loss_ratio"] == pytest.approx(1.03)
    assert row["loss_ratio_se"] == pytest.approx(0.0132 / 3**0.5, rel=0.01)
    assert row["misses"] == "loss"
    assert misses({**row, "loss_ratio": 1.02}) == ""
    assert misses({**row, "defence": "median"}) == ""
    assert misses({**row, "f": 4, "loss_ratio": 1.005}) == "loss"  # the error alone brings it over 1 %


def test_a_backdoor_misses_by_its_trigger_and_an_attack_that_did_no_harm_is_marked() -> None:
    planted = [ByzantineCase(attack="backdoor", defence=defence) for defence in ("undefended", "pipeline")]
    harmless = [ByzantineCase(attack="copies", defence=defence) for defence in ("undefended", "pipeline")]
    rows = rows_of((planted[0], 2.0, 0.9), (planted[1], 2.0, 0.04), (harmless[0], 2.001, 0.0), (harmless[1], 2.0, 0.0))
    assert [row["misses"] for row in rows] == ["", "trigger", "", ""]
    assert [row["hurts_word"] for row in rows] == ["yes", "yes", "no", "no"]
    alone = rows_of((planted[1], 2.0, 0.04))
    assert alone[0]["hurts_word"] == "not tried"


def test_a_loss_that_is_no_number_has_hurt() -> None:
    rows = rows_of((ByzantineCase(attack="scale", defence="undefended"), float("nan"), 0.0))
    assert rows[0]["hurts"] is True


def test_a_file_of_results_is_one_that_tables_can_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["byzantine", "--quick"])
    case = ByzantineCase(attack="alie", defence="pipeline")
    write_results(tmp_path / "x.json", rows_of((case, 2.1, 0.0)), command="none", columns=byzantine.COLUMNS, rounds=40)
    shown = tables.table_of(tables.read(tmp_path / "x.json"))
    assert "| alie | pipeline | 16, 4 | whole | 1 | +5.0 % | – | 0 | 0 | 0 of 10 | not tried | loss |" in shown


def test_what_was_run_is_kept_and_not_run_again(tmp_path: Path, corpus: Path) -> None:
    from coordinator.datasets import prepare

    prepare([str(corpus)], tmp_path / "data")
    case = ByzantineCase(attack="sign-flip", defence="undefended", n=3, f=1)
    kept = byzantine.Kept(tmp_path / "runs.jsonl", 2)
    kept.run([case, case.absent], 1, tmp_path)
    again = byzantine.Kept(tmp_path / "runs.jsonl", 2)
    assert case in again
    assert case.absent in again
    assert replace(case, seed=1) not in again
    assert case not in byzantine.Kept(tmp_path / "runs.jsonl", 3)
    (row,) = again.rows_so_far()
    assert (row["attack"], row["honest_sent"], row["honest_banned"]) == ("sign-flip", 4, 0)
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert {line["byzantine_accepted"] for line in lines} == {0, 2}
    assert {line["attack"] for line in lines} == {NOBODY, "sign-flip"}


def test_a_training_that_is_asked_for_again_is_remembered_and_another_is_not() -> None:
    trained: list[str] = []

    def training(worker: str, *_: Any) -> str:
        trained.append(worker)
        return f"by {worker}"

    lease = Lease(
        lease_id=LeaseId("r1.1"),
        round=RoundNumber(1),
        base_version=Version(0),
        columns=(0,),
        data=DataRange(seed=1, start=0, count=2),
        seed=1,
        inner_steps=2,
        batch_sequences=1,
        recipe=Recipe(),
    )
    remembered, sequences_NL = Remembered(training, 2), np.zeros((2, 3), dtype="int64")
    shadow = replace(lease, lease_id=LeaseId("r1.9"))
    assert [remembered(one, of, {}, sequences_NL) for one, of in (("a", lease), ("b", shadow))] == ["by a", "by a"]
    assert remembered("c", lease, {}, sequences_NL + 1) == "by c", "poisoned"
    assert remembered("d", replace(lease, inner_steps=1), {}, sequences_NL) == "by d", "of fewer steps"
    assert remembered("e", lease, {}, sequences_NL) == "by e", "two are kept"
    assert trained == ["a", "c", "d", "e"]

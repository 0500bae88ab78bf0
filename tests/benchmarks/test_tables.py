"""The tables of the docs are those of results/, and say what the figures say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import tables

RESULT = {
    "command": "python -m benchmarks.x",
    "machine": "a machine",
    "date": "2026-11-26",
    "columns": [
        {"heading": "row", "shows": "{label}"},
        {"heading": "over", "shows": "{over:+.1f} ± {error:.1f} %", "goal": "8 %"},
        {"heading": "tokens", "shows": "{tokens:,}"},
    ],
    "rows": [
        {"label": "one-2", "over": -4.71, "error": 0.3, "tokens": 19200, "strong": ["over"]},
        {"label": "two", "tokens": 5},
    ],
}
SOURCE = "\n\n`python -m benchmarks.x`; a machine; 2026-11-26.\n"


def test_the_page_is_what_the_results_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tables", "--check"])
    assert tables.main() == 0


def test_a_table_shows_figures_as_its_columns_say() -> None:
    assert tables.table_of(RESULT) == (
        "| row | over | tokens |\n| --- | --- | --- |\n| one-2 | **−4.7 ± 0.3 %** | 19,200 |\n| two | – | 5 |" + SOURCE
    )


def test_a_transposed_table_has_a_column_for_each_row_and_one_for_goals() -> None:
    result = {**RESULT, "transposed": True, "columns": RESULT["columns"][1:]}
    assert tables.table_of(result) == (
        "| | one-2 | two | goal |\n| --- | --- | --- | --- |\n"
        "| over | **−4.7 ± 0.3 %** | – | 8 % |\n| tokens | 19,200 | 5 | |" + SOURCE
    )


def test_a_page_out_of_step_is_told_and_then_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- results/x.json -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    other = tmp_path / "security.md"
    other.write_text("no table\n", encoding="utf-8")
    (tmp_path / "x.json").write_text(json.dumps(RESULT), encoding="utf-8")
    monkeypatch.setattr(tables, "PAGES", (page, other))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    ran = []
    for arguments in (["--check"], [], ["--check"]):
        monkeypatch.setattr(sys, "argv", ["tables", *arguments])
        ran.append(tables.main())
    assert ran == [1, 0, 0]
    assert "run python -m benchmarks.tables" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == (
        f"before\n<!-- results/x.json -->\n{tables.table_of(RESULT)}<!-- end -->\nafter\n"
    )


def test_a_table_without_figures_and_figures_without_a_table_are_refused() -> None:
    page = "<!-- results/x.json -->\n<!-- end -->\n"
    for results in ({}, {"y": RESULT}, {"x": RESULT, "y": RESULT}):
        with pytest.raises(ValueError, match="the pages have the tables"):
            tables.pages_with_tables({Path("a.md"): page, Path("b.md"): ""}, results)
    with pytest.raises(ValueError, match="the pages have the tables"):
        tables.pages_with_tables({Path("a.md"): page, Path("b.md"): page}, {"x": RESULT})  # on one page alone


@pytest.mark.parametrize("missing", ["command", "machine", "date", "rows"])
def test_figures_of_unknown_origin_are_refused(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({key: value for key, value in RESULT.items() if key != missing}), encoding="utf-8")
    with pytest.raises(ValueError, match=f"no {missing}"):
        tables.read(path)

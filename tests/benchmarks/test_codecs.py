"""The codecs' table: every codec has a row, and its cells are what the columns say."""

from __future__ import annotations

import pytest

from benchmarks.codecs import measure, medians
from protocol.codecs import CODECS


@pytest.mark.parametrize("name", CODECS)
def test_a_codecs_row(name: str) -> None:
    row = measure(CODECS[name], 70_000, repeats=1)
    assert (row["codec"], row["elements"], row["state"]) == (name, 70_000, CODECS[name].has_state)
    assert row["bits"] == pytest.approx(CODECS[name].bits_per_parameter, rel=0.01)
    assert 0.0 <= float(row["relative_error"] or 0.0) < 0.95
    assert all(float(row[f"{call}_gb_s"] or 0.0) > 0 for call in ("copy", "clone", "encode", "decode", "spans"))


def test_calls_are_taken_in_turn_and_the_first_turn_does_not_count() -> None:
    order: list[str] = []
    taken = medians({"one": lambda: order.append("one"), "two": lambda: order.append("two")}, repeats=2)
    assert order == ["one", "two"] * 3
    assert set(taken) == {"one", "two"}

"""docs/security.md names tests that exist, and every test of the edge is named there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "security.md"
# What is true of the tests themselves rather than of the product.
ABOUT_TESTS = {
    "test_evil_identity.py::test_a_coordinator_that_does_not_lie_is_served",
    "test_secrets.py::test_one_source_of_a_link_is_given",
    "test_rates.py::test_what_counts_as_one_address",
    "test_rates.py::test_a_bucket_lets_its_burst_through_and_then_its_rate",
}


def named_here() -> set[str]:
    return {
        f"{path.name}::{node.name}"
        for path in FOLDER.glob("test_*.py")
        if path != Path(__file__)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_the_page_names_every_test_and_no_other() -> None:
    named = set(re.findall(r"`(test_\w+\.py::test_\w+)`", PAGE.read_text(encoding="utf-8")))
    assert named == named_here() - ABOUT_TESTS

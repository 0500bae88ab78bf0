"""No two files of the product need each other, neither for their types nor within a function."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

ROOMS = ("barnraise", "simulator", "benchmarks", "coordinator", "worker", "peering", "aggregation", "moe", "protocol")


def test_no_imports_go_in_a_circle() -> None:
    graph = grimp.build_graph(*ROOMS, cache_dir=None)
    needs = {module: graph.find_modules_directly_imported_by(module) for module in sorted(graph.modules)}
    assert len(needs) > 200
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as circle:
        pytest.fail(f"import each other: {' <- '.join(circle.args[1])}")

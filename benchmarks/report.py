"""How every benchmark takes its arguments and shows its rows: a table on the terminal, the same keys as JSON.

Holds no measurement of its own, but for the machine line that a row of figures is worth nothing without.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Cell = str | int | float | bool | None
Row = Mapping[str, Cell]


def parse_args(description: str, **flags: str) -> argparse.Namespace:
    """The two options that all benchmarks share: `quick` (bool) and `json` (Path or None); and a benchmark's own
    `flags`, each with its help."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="under a minute: smaller, same columns")
    parser.add_argument("--json", type=Path, metavar="FILE", default=None, help="write the rows to FILE, too")
    for name, told in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=told)
    return parser.parse_args()


def print_rows(rows: Sequence[Row]) -> None:
    """A right-aligned table; columns in the order in which keys first appear."""
    print(table(rows))


def table(rows: Sequence[Row]) -> str:
    """The table as text."""
    keys = columns_of(rows)
    cells = [keys, *([_shown(row.get(key)) for key in keys] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(keys))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Keys of all rows, in order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def write_json(path: Path | str, rows: Sequence[Row]) -> None:
    """A list with one object a row, each with every key of the printed table."""
    keys = columns_of(rows)
    whole = [{key: row.get(key) for key in keys} for row in rows]
    Path(path).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def write_results(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    command: str,
    columns: Sequence[Mapping[str, str]],
    beside: str = "",
    **facts: Any,
) -> None:
    """As a file of results/, for benchmarks.tables; what a row lacks is left out, which a table shows as a dash.

    `beside` is said of the machine, as what else ran on it; `facts` stand above the rows.
    """
    whole = {
        "command": command,
        "machine": ", ".join(filter(None, (machine(), beside))),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **facts,
        "columns": columns,
        "rows": [{key: value for key, value in row.items() if value is not None} for row in rows],
    }
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def machine() -> str:
    """One line for a file in results/: processor, cores, system, Python."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{_processor_name()}, {cores} cores, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}"
    )


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


def _shown(value: Cell) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}"
    return f"{value:.4g}"

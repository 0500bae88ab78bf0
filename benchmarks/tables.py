"""The tables of the docs, written from the figures in results/: `python -m benchmarks.tables [--check]`.

A file of results says what was run, when and on what, and how its columns read (a heading, and a format of a row's
fields), and holds a row of figures for each line; where it is `transposed`, the columns go down the page and each row
is a column under its `label`. A row's `strong` names the headings of its cells in bold. Always: a table stands between
`<!-- results/NAME.json -->` and `<!-- end -->`, is that file and nothing else, and each file has its table on one
page. `--check` writes nothing and exits with 1 where a page is out of step.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = tuple(ROOT / "docs" / name for name in ("performance.md", "security.md", "reliability.md"))
RESULTS = ROOT / "results"
_PLACE = re.compile(r"(<!-- results/([\w-]+)\.json -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    """Write the tables, or say whether they are written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page is out of step")
    args = parser.parse_args()
    before = {page: page.read_text(encoding="utf-8") for page in PAGES}
    after = pages_with_tables(before, {path.stem: read(path) for path in RESULTS.glob("*.json")})
    changed = [page for page in PAGES if before[page] != after[page]]
    for page in changed:
        if args.check:
            print(f"{page.name} is not what results/ says; run python -m benchmarks.tables", file=sys.stderr)
        else:
            page.write_text(after[page], encoding="utf-8")
    return int(args.check and bool(changed))


def read(path: Path) -> dict[str, Any]:
    """A file of results; ValueError where it lacks what makes its figures worth anything."""
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    missing = {"command", "machine", "date", "columns", "rows"} - result.keys()
    if missing:
        raise ValueError(f"{path}: no {', '.join(sorted(missing))}")
    return result


def pages_with_tables(pages: Mapping[Path, str], results: Mapping[str, Mapping[str, Any]]) -> dict[Path, str]:
    """`pages` with every table as `results` have it; ValueError where pages and results name different ones."""
    named = [name for page in pages.values() for _, name, _ in _PLACE.findall(page)]
    if sorted(named) != sorted(results):
        raise ValueError(f"the pages have the tables {sorted(named)}, results/ has {sorted(results)}")
    return {
        path: _PLACE.sub(lambda found: f"{found[1]}{table_of(results[found[2]])}{found[3]}", page)
        for path, page in pages.items()
    }


def table_of(result: Mapping[str, Any]) -> str:
    """The table in Markdown, and under it what was run, on what, and when."""
    rows = [[column["heading"] for column in result["columns"]]]
    rows += [[_cell(column, row) for column in result["columns"]] for row in result["rows"]]
    if result.get("transposed"):
        labels = ["", *(row["label"] for row in result["rows"])]
        rows = [labels, *(list(line) for line in zip(*rows, strict=True))]
        goals = [column.get("goal", "") for column in result["columns"]]
        if any(goals):
            rows = [[*line, goal] for line, goal in zip(rows, ["goal", *goals], strict=True)]
    rows.insert(1, ["---"] * len(rows[0]))
    source = f"`{result['command']}`; {result['machine']}; {result['date']}."
    return "\n".join([*map(_line, rows), "", source, ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def _cell(column: Mapping[str, str], row: Mapping[str, Any]) -> str:
    """A row's figures as the column shows them; a dash where it has none."""
    try:
        shown = column["shows"].format_map(row)
    except KeyError:
        return "–"
    shown = re.sub(r"(?<![\w.])-(?=\d)", "−", shown)
    return f"**{shown}**" if column["heading"] in row.get("strong", ()) else shown


if __name__ == "__main__":
    sys.exit(main())

"""Everything that is worth knowing of a GPU, in one command that needs nobody beside it.

    python -m benchmarks.gpu [--quick] [--out DIR] [--minutes M] [--only PIECE]... [--device D] [--json FILE]
    python -m benchmarks.gpu --list

Works through its pieces (benchmarks/gpu_pieces.py), each in a process of its own that is stopped before nine minutes
are over, and keeps each row in DIR as soon as it is there; the same command goes on with what is missing (exit code 3:
`--minutes` were over and there is more to do). A case that fails, dies or takes longer is a row that says so. On a GPU
the rows are written to results/gpu-NAME.json, NAME being the card's; of a CPU nothing is, but where `--json` says.
`--quick` has small sizes: on a CPU all of it in a minute and a half, in this process. Exit code 1: a case failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.gpu_pieces import PIECES, Measure
from benchmarks.gpu_sizes import SIZES, Size
from benchmarks.gpu_where import Where, where_we_are
from benchmarks.report import print_rows, write_results

EXIT_MORE: Final = 3
PIECE_S: Final = 530.0
"""After which a process is stopped."""
NO_NEW_CASE_S: Final = 400.0
"""After which a process begins no further case."""
RESULTS: Final = Path(__file__).parents[1] / "results"
COLUMNS: Final = (
    {"heading": "piece", "shows": "{piece}"},
    {"heading": "case", "shows": "{case}"},
    {"heading": "held", "shows": "{held}"},
    {"heading": "step, s", "shows": "{step_s:.3g}"},
    {"heading": "tokens/s", "shows": "{tokens_per_s:,.0f}"},
    {"heading": "TFLOP/s", "shows": "{tflops:.3g}"},
    {"heading": "MFU", "shows": "{mfu:.1%}"},
    {"heading": "of a large product", "shows": "{of_product:.1%}"},
    {"heading": "peak, bytes", "shows": "{peak_bytes:,}"},
    {"heading": "of its plan", "shows": "{of_plan:.2f}"},
    {"heading": "computed again", "shows": "{same:.2g}"},
    {"heading": "cut otherwise", "shows": "{cut:.2g}"},
    {"heading": "noted", "shows": "{noted}"},
    {"heading": "failed", "shows": "{error}"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRows:
    """Rows of one device at one size, a file for each piece."""

    folder: Path
    size: Size

    def rows(self, piece: str) -> list[dict[str, Any]]:
        """What is there of a piece."""
        path = self.folder / f"{piece}.jsonl"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        return [row for line in lines if (row := _whole(line)) is not None]

    def add(self, piece: str, case: str, row: dict[str, Any]) -> None:
        """One more, for good."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{piece}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"piece": piece, "case": case, **row}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def missing(self, piece: str) -> Iterator[tuple[str, Measure]]:
        """Cases that have no row."""
        there = {row["case"] for row in self.rows(piece)}
        return ((name, measure) for name, measure in PIECES[piece].cases(self.size) if name not in there)

    @property
    def begun(self) -> Path:
        """Names the case that is measured just now, or was when the process died."""
        return self.folder / "begun.json"


def _whole(line: str) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError:  # the process died while it wrote
        return None
    return row


def measure_piece(piece: str, kept: KeptRows, where: Where, until_s: float) -> bool:
    """Measure what is missing, in this process; whether nothing is any more. Ends after a case that has to go on."""
    for case, measure in list(kept.missing(piece)):
        if time.monotonic() >= until_s:
            return False
        kept.folder.mkdir(parents=True, exist_ok=True)
        kept.begun.write_text(json.dumps({"case": case}))
        started_s = time.monotonic()
        try:
            row: dict[str, Any] | None = _plain(measure(where, kept.folder / piece))
        except Exception as error:  # of one case: the others may still say something
            row = {"error": f"{type(error).__name__}: {error}"[:300]}
        where.free()
        if row is None:
            return False
        kept.add(piece, case, {**row, "wall_s": round(time.monotonic() - started_s, 2)})
        print(f"{piece}: {case} ({time.monotonic() - started_s:.1f} s)", file=sys.stderr, flush=True)
    kept.begun.unlink(missing_ok=True)
    return True


def _plain(row: Any) -> dict[str, Any] | None:
    return None if row is None else dict(row)


def in_a_process(piece: str, kept: KeptRows, options: argparse.Namespace, until_s: float) -> bool:
    """The same in a process of its own, again and again until there is a row for every case, or time is over."""
    while next(kept.missing(piece), None) is not None:
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            return False
        before = len(kept.rows(piece))
        code = _run(_command(piece, kept, options, left_s), min(PIECE_S, left_s))
        cut_short = code is None and left_s < PIECE_S
        if code not in (0, EXIT_MORE) and not cut_short and len(kept.rows(piece)) == before:
            case = _begun(kept) or next(kept.missing(piece))[0]
            kept.add(piece, case, {"error": f"took over {PIECE_S:.0f} s" if code is None else f"died with {code}"})
    return True


def _begun(kept: KeptRows) -> str | None:
    found = _whole(kept.begun.read_text("utf-8")) if kept.begun.exists() else None
    return None if found is None else str(found["case"])


def _command(piece: str, kept: KeptRows, options: argparse.Namespace, left_s: float) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--here", f"--only={piece}", f"--out={options.out}"]
    command += [f"--minutes={min(NO_NEW_CASE_S, left_s) / 60.0}", f"--size={kept.size.name}"]
    return command if options.device is None else [*command, f"--device={options.device}"]


def _run(command: Sequence[str], timeout_s: float) -> int | None:
    """Its exit code; None where it took too long."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return None


def measure_all(
    pieces: Sequence[str], kept: KeptRows, until_s: float, one: Callable[[str, float], bool]
) -> list[dict[str, Any]]:
    """Rows of all `pieces`, as far as they came."""
    for piece in pieces:
        if not one(piece, until_s):
            break
    return [row for piece in pieces for row in kept.rows(piece)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, keep and show."""
    options = _arguments(arguments)
    if options.list:
        for name, piece in PIECES.items():
            print(f"{name:8} {piece.about}")
        return 0
    size = SIZES[options.size or ("quick" if options.quick else "full")]
    pieces = options.only or list(PIECES)
    where = where_we_are(options.device)
    kept = KeptRows(folder=options.out / f"{where.slug}-{size.name}", size=size)
    until_s = time.monotonic() + 60.0 * options.minutes

    def one(piece: str, until_s: float) -> bool:
        if options.here:
            return measure_piece(piece, kept, where, until_s)
        if size.name == "full":
            return in_a_process(piece, kept, options, until_s)
        while not (done := measure_piece(piece, kept, where, until_s)) and time.monotonic() < until_s:
            pass
        return done

    rows = measure_all(pieces, kept, until_s, one)
    left = sum(1 for piece in pieces for _ in kept.missing(piece))
    if options.here:
        return EXIT_MORE if left else 0
    print(f"{where.name}, torch {torch.__version__}; {left} cases are left")
    for piece in pieces:
        print()
        print_rows([row for row in rows if row["piece"] == piece])
    _write(options, where, size, rows, left)
    failed = any("error" in row or row.get("holds") is False for row in rows)
    return EXIT_MORE if left else int(failed)


def _write(options: argparse.Namespace, where: Where, size: Size, rows: list[dict[str, Any]], left: int) -> None:
    target = options.json or (RESULTS / f"gpu-{where.slug}.json" if where.is_gpu and size.name == "full" else None)
    if target is None:
        print("nothing is written to results/: that is for the full size, on a GPU")
        return
    command = "python -m benchmarks.gpu" + ("" if size.name == "full" else f" --size {size.name}")
    device = f"{where.name}, {where.memory_bytes / 2**30:.0f} GiB, torch {torch.__version__}"
    write_results(target, rows, command=command, columns=COLUMNS, beside=device, cases_left=left)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the pieces, and do nothing")
    parser.add_argument("--quick", action="store_true", help="small sizes, in this process: for a CPU")
    parser.add_argument("--size", choices=SIZES, default=None, help="full by default, quick with --quick")
    parser.add_argument("--only", action="append", choices=PIECES, metavar="PIECE", help="this piece; may be repeated")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin nothing after so long; then exit code 3")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="where rows are kept")
    parser.add_argument("--device", default=None, help="cpu or cuda:N; the first GPU where there is one")
    parser.add_argument("--json", type=Path, metavar="FILE", default=None, help="write the rows to FILE")
    parser.add_argument("--here", action="store_true", help="in this process, and show nothing")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())

"""The benchmark of a GPU, at a size for a CPU: every piece gives its rows, none twice, and trouble is a row."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.gpu_flops import step_flops
from benchmarks.gpu_pieces import PIECES, GpuPiece
from benchmarks.gpu_rungs import RUNGS
from benchmarks.gpu_sizes import SIZES
from benchmarks.gpu_where import Peak, where_we_are
from moe.layout import layout
from moe.presets import preset

MICRO = SIZES["micro"]


def run(folder: Path, *more: str) -> tuple[int, list[dict[str, Any]]]:
    out = folder / "rows.json"
    code = gpu.main(["--size=micro", "--device=cpu", f"--out={folder / 'kept'}", f"--json={out}", *more])
    return code, json.loads(out.read_text("utf-8"))["rows"]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of measured cases of the one piece that there is: `fine` and `broken` of three."""
    seen: list[str] = []

    def case(name: str) -> Any:
        def measure(_where: Any, _folder: Path) -> Any:
            seen.append(name)
            if name == "broken":
                raise RuntimeError("of no use")
            return {"step_s": 1.0} if name == "fine" or seen.count(name) > 1 else None

        return name, measure

    def cases(_size: Any) -> Iterator[Any]:
        return map(case, ("fine", "broken", "in two calls"))

    monkeypatch.setattr(gpu, "PIECES", {"one": GpuPiece(about="a piece", cases=cases)})
    return seen


def test_every_piece_has_a_row_for_each_case_and_none_failed(tmp_path: Path) -> None:
    code, rows = run(tmp_path)
    assert [(row["case"], row["error"]) for row in rows if "error" in row] == []
    assert code == 0
    assert [(row["piece"], row["case"]) for row in rows] == [
        (name, case) for name, piece in PIECES.items() for case, _ in piece.cases(MICRO)
    ]
    by_piece = {name: [row for row in rows if row["piece"] == name] for name in PIECES}
    assert len(by_piece["rungs"]) == len(RUNGS)
    assert all(row["holds"] for row in by_piece["oom"]), "a batch that does not fit is cut, and the lease is done"
    assert all(row["same"] == 0.0 for row in by_piece["noise"]), "on a CPU the bits are the same"
    assert any("columns fit" in str(row["noted"]) for row in by_piece["cards"])
    assert {row["case"].rpartition(", ")[2] for row in by_piece["ways"]} == {"grouped", "padded", "eager"}
    assert by_piece["lost"][0]["holds"]
    assert by_piece["parity"][0]["routing_percent"] is not None


def test_what_is_kept_is_not_measured_again(tmp_path: Path, measured: list[str]) -> None:
    code, rows = run(tmp_path)
    assert (code, measured) == (1, ["fine", "broken", "in two calls", "in two calls"])
    assert rows[1]["error"] == "RuntimeError: of no use"
    again = run(tmp_path)
    assert len(measured) == 4
    assert again[1] == rows


def test_a_torn_row_is_measured_again_and_time_that_is_over_ends_with_3(tmp_path: Path, measured: list[str]) -> None:
    assert run(tmp_path, "--minutes=0") == (gpu.EXIT_MORE, [])
    run(tmp_path)
    kept = tmp_path / "kept" / "cpu-micro" / "one.jsonl"
    kept.write_text(kept.read_text("utf-8")[:-9], encoding="utf-8")
    run(tmp_path)
    assert measured[4:] == ["in two calls"]


@pytest.mark.parametrize(("code", "said"), [(None, "took over"), (-11, "died with -11")])
def test_a_process_that_dies_or_hangs_costs_its_case_alone(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch, code: int | None, said: str
) -> None:
    kept = gpu.KeptRows(folder=tmp_path, size=MICRO)

    def process(command: list[str], _timeout_s: float) -> int | None:
        assert "--here" in command
        begun = next(kept.missing("one"))[0]
        kept.begun.write_text(json.dumps({"case": begun}), encoding="utf-8")
        if begun == "broken":
            return code
        kept.add("one", begun, {})
        return gpu.EXIT_MORE

    monkeypatch.setattr(gpu, "_run", process)
    tmp_path.mkdir(exist_ok=True)
    options = argparse.Namespace(out=tmp_path, device=None)
    assert gpu.in_a_process("one", kept, options, until_s=float("inf"))
    assert [said in str(row.get("error", "")) for row in kept.rows("one")] == [False, True, False]


def test_of_a_cpu_nothing_goes_to_results(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results")
    assert gpu.main(["--quick", "--device=cpu", f"--out={tmp_path / 'kept'}"]) == 1
    assert not (tmp_path / "results").exists()
    assert "nothing is written" in capsys.readouterr().out


def test_pieces_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(PIECES)


def test_flops_are_six_a_trained_parameter_four_a_frozen_one_and_attention() -> None:
    cut = layout(preset("tiny"), "frozen")
    hidden, width, vocabulary, length, tokens = 96, 128, cut.config_json["vocab_size"], 64, 10
    attention = 2 * 4 * hidden * hidden  # two layers
    trunk = attention + 2 * 8 * hidden + vocabulary * hidden
    expert = 2 * 3 * hidden * width
    causal = 6 * 2 * hidden * length
    for held in (8, 2):
        experts = 2 * expert * (6 * held + 4 * (8 - held)) / 8
        assert step_flops(cut, held, tokens, length) == pytest.approx(tokens * (6 * trunk + experts + causal))


def test_a_peak_is_what_was_there_at_most() -> None:
    with Peak(where_we_are("cpu")) as peak:
        held = bytearray(200 << 20)
        held[:: 1 << 12] = b"x" * (len(held) >> 12)
    assert 150 << 20 < peak.peak_bytes < 400 << 20

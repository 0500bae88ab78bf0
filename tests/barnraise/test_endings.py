"""Every way in ends in a sentence and an exit code: no number, terminal, disk or broken pipe brings out a traceback."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from barnraise.cli import endings
from barnraise.cli.app import run
from barnraise.cli.endings import EXIT_FAULT
from barnraise.cli.output import print_json, speak_in_any_encoding
from protocol.errors import LocalError
from tests.served import make_run, write_text

ROOT = Path(__file__).parents[2]
ALONE = ["unshare", "--map-root-user", "--mount"]
SIMULATE = ["simulate", "--out", "/nonexistent/x"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["coordinator", "invite", "x", "--expires-in-h", "-1"], "-1 is not a number above 0 and at most 8784"),
        (["coordinator", "invite", "x", "--expires-in-h", "1e400"], "1e400 is not a number above 0 and at most 8784"),
        (["coordinator", "invite", "x", "--count", "1001"], "less than or equal to 1000"),
        (["coordinator", "init", "x", "--learning-rate", "nan"], "nan is not a number above 0"),
        ([*SIMULATE, "--dropout", "-0.5"], "-0.5 is not a number at least 0 and below 1"),
        ([*SIMULATE, "--dropout", "nan"], "nan is not a number at least 0 and below 1"),
        ([*SIMULATE, "--attack-strength", "0"], "0 is not a number above 0"),
        (["pretrain", "--out", "x", "--data", "x", "--learning-rate", "inf"], "inf is not a number above 0"),
        (["data", "prepare", "x", "--out", "y", "--heldout", "1"], "1 is not a number above 0 and below 1"),
        (["sample", "x", "--temperature", "nan"], "nan is not a number at least 0 and at most 100"),
        (["sample", "x", "--seed", str(2**64)], str(2**63 - 1)),
        (["status", "x", "--watch", "inf"], "inf is not a number at least 0.2"),
    ],
)
def test_a_number_that_cannot_be_is_refused_with_its_range(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert says in told


def test_a_plan_that_fits_nothing_says_how_much_would_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--preset", "tiny", "--memory", "1MB"]) == 1
    told = capsys.readouterr().out
    assert "not even 1 of 8 columns fit" in told
    least = told[told.index("The least memory for this is ") :].split(" is ")[1].split(". ")[0]
    assert run(["plan", "--preset", "tiny", "--memory", "1MB", "--json"]) == 1
    needed = json.loads(capsys.readouterr().out)["needed_bytes"]
    assert run(["plan", "--preset", "tiny", "--memory", str(needed)]) == 0
    assert float(least.split()[0]) == pytest.approx(needed / 2**20, abs=0.1)


@pytest.mark.parametrize("error", [ZeroDivisionError("secret words"), LocalError("a promise"), ValueError("library")])
def test_what_nobody_foresaw_is_written_to_a_private_file_that_is_named(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(endings, "_state_folder", lambda: tmp_path / "faults")
    monkeypatch.setattr("barnraise.cli.model.print_pairs", lambda _: (_ for _ in ()).throw(error))
    assert run(["version"]) == EXIT_FAULT
    (sentence,) = capsys.readouterr().err.splitlines()
    (report,) = (tmp_path / "faults").iterdir()
    assert "a fault of the program, not of yours" in sentence
    assert str(report) in sentence
    assert ("a promise" in sentence) == isinstance(error, LocalError)
    assert "secret words" not in sentence
    assert "library" not in sentence
    assert type(error).__name__ in report.read_text()
    assert report.stat().st_mode & 0o077 == 0
    assert report.parent.stat().st_mode & 0o077 == 0


def test_without_a_place_for_state_the_report_goes_where_temporary_files_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(endings, "_state_folder", lambda: Path("/proc/nothing/here"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("barnraise.cli.model.print_pairs", lambda _: 1 / 0)
    assert run(["version"]) == EXIT_FAULT
    (report,) = tmp_path.iterdir()
    assert str(report) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(13, "Permission denied", "/a/b"), "cannot use /a/b: this user may not write there"),
        (IsADirectoryError(21, "Is a directory", "/a/b"), "cannot use /a/b: is a directory"),
        (RuntimeError("Could not determine home directory."), "set HOME"),
        (MemoryError(), "too little free memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), "too little free memory"),
    ],
)
def test_what_a_person_can_correct_is_one_sentence(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("barnraise.cli.model.print_pairs", lambda _: (_ for _ in ()).throw(error))
    assert run(["version"]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert says in sentence


def barnraise(*words: str, encoding: str = "utf-8", **more: object) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "barnraise", *words]
    return subprocess.run(command, env=environment, check=False, timeout=300, **{"capture_output": True, **more})  # type: ignore[call-overload]


@pytest.mark.parametrize("encoding", ["ascii:strict", "iso-8859-1:strict", "utf-8:strict"])
def test_no_terminal_lacks_a_character_that_ends_a_command(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "Ω").mkdir()
    write_text(tmp_path / "Ω")
    prepared = ["data", "prepare", str(tmp_path / "Ω"), "--out", str(tmp_path / "data"), "--licence", "Ω → 1"]
    for more, loaded in (([], None), (["--json"], json.loads)):
        done = barnraise(*prepared, *more, encoding=encoding)
        assert (done.returncode, done.stderr) == (0, b""), done.stderr
        told = done.stdout.decode(encoding.partition(":")[0])
        if loaded is None:
            assert ("Ω → 1" if encoding.startswith("utf") else "\\u03a9 -> 1") in told
        else:
            assert "Ω → 1" in loaded(told)["licence"]


def test_signs_of_ours_have_a_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", terminal)
    speak_in_any_encoding()
    print("5.1 → 4.9 ± 0.1 ▁█ ž \udce9")
    print_json({"name": "Ω😀"})
    terminal.flush()
    said = terminal.buffer.getvalue().decode("ascii")
    assert said.splitlines()[0] == "5.1 -> 4.9 +/- 0.1 18 \\u017e \\udce9"
    assert json.loads(said.split("\n", 1)[1]) == {"name": "Ω😀"}


@pytest.mark.parametrize("words", [["version"], ["plan", "--preset", "tiny"], ["--help"]])
def test_a_reader_that_went_away_ends_it_quietly(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = barnraise(*words, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_cannot_be_written_is_told() -> None:
    with Path("/dev/full").open("wb") as full:
        done = barnraise("version", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert b"cannot write the output: the disk is full" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_pipe_of_another_kind_that_breaks_is_no_quiet_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(endings, "_state_folder", lambda: tmp_path)
    monkeypatch.setattr("barnraise.cli.model.print_pairs", lambda _: (_ for _ in ()).throw(BrokenPipeError(32, "x")))
    assert run(["version"]) == EXIT_FAULT


def test_on_a_full_and_on_a_read_only_disk_every_command_leaves_nothing_behind(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = [*ALONE, "mount", "-t", "tmpfs", "tmpfs", str(disk)]
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a test mount a disk of its own")
    (tmp_path / "text").mkdir()
    text = write_text(tmp_path / "text")
    folder = make_run(tmp_path / "run", text, {})
    command = [*ALONE, sys.executable, "-m", "tests.barnraise.small_disk", str(folder), str(text), str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert len(seen) == 18
    for name, one in seen.items():
        assert one["code"] == 2, (name, one)
        assert one["left"] == [], (name, one)
        says = "the disk is full: make room" if name.startswith("full") else "the file system is read-only"
        assert says in one["said"].splitlines()[-1], (name, one)
        assert one["said"].splitlines()[-1].startswith("barnraise: "), (name, one)
        assert "Traceback" not in one["said"], (name, one)

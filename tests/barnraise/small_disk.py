"""What `test_endings` runs in a mount namespace: every command that fills a folder, on a disk that is too small for
it, and then on one that is read-only. Prints one JSON object: what each said, its exit code, and what it left there."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

from barnraise.cli.app import run as run_command


def main(run: Path, text: Path, disk: Path) -> None:
    """`disk` is an empty folder; `run` a run that lies elsewhere; `text` some text."""
    model = str(disk.with_name("model"))
    said(["coordinator", "export", str(run), model])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)], check=True)
    seen = {f"full, {name}": outcome(words, disk) for name, words in commands(run, text, disk, model).items()}
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    seen |= {f"read-only, {name}": outcome(words, disk) for name, words in commands(run, text, disk, model).items()}
    print(json.dumps(seen))


def commands(run: Path, text: Path, disk: Path, model: str) -> dict[str, list[str]]:
    data = str(run / "dataset")
    small = ["--sequence-length", "32", "--batch", "1"]
    return {
        "init in place": ["coordinator", "init", str(disk), "--data", data, *small],
        "init beside": ["coordinator", "init", str(disk / "new"), "--data", data, *small],
        "export in place": ["coordinator", "export", str(run), str(disk)],
        "export beside": ["coordinator", "export", str(run), str(disk / "new")],
        "backup": ["coordinator", "backup", str(run), str(disk)],
        "prepare": ["data", "prepare", str(text), "--out", str(disk)],
        "pretrain": ["pretrain", "--out", str(disk / "new"), "--data", data, "--steps", "1", *small],
        "evaluate": ["evaluate", model, "--data", data, "--out", str(disk / "new"), "--limit", "2", *small],
        "simulate": ["simulate", "--out", str(disk / "new"), "--data", data, "--workers", "1", "--rounds", "1", *small],
    }


def outcome(words: list[str], disk: Path) -> dict[str, object]:
    code, told = said(words)
    return {"code": code, "said": told, "left": sorted(str(path) for path in disk.rglob("*"))}


def said(words: list[str]) -> tuple[int, str]:
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        return run_command(words), told.getvalue()


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:]))

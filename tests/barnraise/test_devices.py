"""A device that there cannot be is refused before anything else happens, and alike by every command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from barnraise.cli.app import run

LINK = f"barnraise://127.0.0.1:1/#{'a' * 64}.invite"


@pytest.mark.parametrize("command", ["probe", "join"])
@pytest.mark.parametrize("device", ["tpu", "cuda:x", "mps"])
def test_a_wrong_device_is_refused_in_one_sentence(
    command: str, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    link = [LINK] if command == "join" else []
    assert run(["worker", command, *link, "--device", device]) == 2
    told = capsys.readouterr()
    assert f"expected cpu, cuda or cuda:N, got '{device}'" in told.err
    assert (told.out, told.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("command", [["probe"], ["join", LINK]])
def test_a_wrong_device_is_refused_before_torch_is_imported(command: list[str]) -> None:
    arguments = ["worker", *command, "--device", "tpu"]
    code = f"import sys; from barnraise.cli.app import run; run({arguments!r}); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"


@pytest.mark.parametrize("wrong", [["--device", "tpu"], ["--memory", "much"]])
def test_a_wrong_option_takes_no_link_out_of_a_folder(tmp_path: Path, wrong: list[str]) -> None:
    (tmp_path / "join-1.link").write_text(f"{LINK}\n")
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert run(["worker", "join", "--links-from", str(tmp_path), *wrong]) == 2
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before

"""The command line: quick to answer, plain about mistakes, and the same figures for people and machines."""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from barnraise import __version__
from barnraise.cli.app import run
from barnraise.cli.links import claim_link, write_links
from protocol.amounts import parse_bytes
from protocol.errors import ConfigError
from protocol.text import human_bytes

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "grpc", "numpy", "matplotlib")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("command", ["", "coordinator", "worker", "data", "simulate", "evaluate", "coordinator init"])
def test_help_answers_without_importing_anything_heavy(command: str) -> None:
    arguments = [*command.split(), "--help"]
    code = (
        "import sys; from barnraise.cli.app import run; "
        f"code = run({arguments!r}); print([m for m in {HEAVY!r} if m in sys.modules], code)"
    )
    answer = python("-c", code)
    assert answer.stdout.splitlines()[-1] == "[] 0", answer.stdout + answer.stderr


def test_what_an_operator_asks_and_orders_waits_for_no_torch() -> None:
    answer = python(
        "-c",
        "import sys, coordinator.edge.operator_client, barnraise.cli.status;"
        "print({'torch', 'transformers'} & set(sys.modules))",
    )
    assert answer.stdout == "set()\n", answer.stdout + answer.stderr


BARE_HELP = "import typer; app = typer.Typer(); app.command()(lambda: None); app(['--help'])"


def test_help_costs_little_more_than_a_bare_commands() -> None:
    # Processor time beside a floor from the same minute: seconds alone would tell how busy the machine is.
    floor_s = min(_processor_s("-c", BARE_HELP) for _ in range(5))
    ours_s = min(_processor_s("-m", "barnraise", "--help") for _ in range(5))
    assert ours_s < 2.0 * floor_s


def _processor_s(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert python(*arguments).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_version_for_people_and_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["barnraise"] == __version__
    assert found["torch"].startswith("2.")
    assert run(["version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["simulate", "--attack", "bribe"], "sign-flip"),
        (["simulate", "--workers", "2", "--byzantine", "3"], "at most all of them"),
        (["simulate", "--set", "inner.schedule=step"], "one of cosine, linear, constant"),
        (["simulate", "--set", "inner.learning_rate=fast"], "expected a number, got 'fast'"),
        (["simulate", "--set", "quorom=2"], "known are"),
        (["coordinator", "init", "/nonexistent/run", "--set", "quorum"], "--set takes an engine setting"),
        (["status", "/nonexistent"], "not a run folder"),
        (["coordinator", "run", "/nonexistent"], "not a run folder"),
        (["sample", "/nonexistent"], "holds no model"),
        (["evaluate", "/nonexistent", "--data", "stdlib"], "no checkpoint"),
        (["worker", "join"], "join link"),
        (["worker", "join", "https://example.org"], "barnraise://"),
        (["plan", "--preset", "gigantic"], "tiny"),
        (["plan", "--memory", "lots"], "8GB"),
        (["plan", "--trunk", "half"], "one of trained, lora, frozen"),
        (["coordinator", "init", "/tmp/no-run", "--preset", "tiny", "--trunk", "frozen"], "begin with a checkpoint"),
        (["data", "show", "/nonexistent"], "/nonexistent"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if arguments[0] == "simulate":
        arguments = [*arguments, "--out", str(tmp_path / "out")]
    assert run(arguments) == 2
    told = capsys.readouterr()
    assert says in told.err + told.out
    assert "Traceback" not in told.err
    assert len(told.err.strip().splitlines()) <= 1


def test_a_mistyped_option_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--wrokers", "3"]) == 2
    assert "--wrokers" in capsys.readouterr().err


def test_plan_says_how_many_columns_fit_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--preset", "tiny", "--memory", "1GB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"]
    assert found["columns"] == 8
    assert {"weights", "gradients", "passing"} <= {line["part"] for line in found["lines"]}
    assert run(["plan", "--preset", "tiny", "--memory", "1GB"]) == 0
    assert "8 columns fit" in capsys.readouterr().out
    for trunk, words in (("frozen", "frozen trunk"), ("lora", "factors of rank 4")):
        assert run(["plan", "--memory", "1GB", "--trunk", trunk, "--lora-rank", "4", "--json"]) == 0
        less = json.loads(capsys.readouterr().out)
        assert less["needed_bytes"] < found["needed_bytes"]
        assert any(words in line["why"] for line in less["lines"])


def test_data_is_prepared_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "text"
    source.mkdir()
    for number in range(8):
        (source / f"{number}.txt").write_text(f"page {number}: " + "words and words\n" * 40)
    prepare = ["data", "prepare", str(source), "--out", str(tmp_path / "data"), "--licence", "CC0-1.0", "--json"]
    assert run(prepare) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["licence"] == "CC0-1.0"
    assert run(["data", "show", card["folder"], "--verify"]) == 0
    told = capsys.readouterr().out
    assert card["digest"] in told
    assert "CC0-1.0" in told


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GB", 8 << 30), ("512 MiB", 512 << 20), ("1.5g", 3 << 29), ("4096", 4096), ("2tb", 2 << 40), ("10k", 10240)],
)
def test_amounts_of_memory(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GB", "8 apples", "-1GB", "nan", "8GBGB", "1e400"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_bytes(text)


def test_bytes_for_reading() -> None:
    assert [human_bytes(n) for n in (0, 1023, 1536, 5 << 30)] == ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]


def test_each_worker_takes_another_link_and_keeps_it(tmp_path: Path) -> None:
    write_links(tmp_path / "links", ["barnraise://one", "barnraise://two"])
    first = claim_link(tmp_path / "links", claimant="a", wait_s=0.0)
    second = claim_link(tmp_path / "links", claimant="b", wait_s=0.0)
    assert {first, second} == {"barnraise://one", "barnraise://two"}
    assert claim_link(tmp_path / "links", claimant="a", wait_s=0.0) == first
    with pytest.raises(ConfigError, match="no free join link"):
        claim_link(tmp_path / "links", claimant="c", wait_s=0.0)


def test_links_written_within_one_second_never_overwrite_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)
    given = [[f"barnraise://{writer}-{number}" for number in range(3)] for writer in range(4)]
    for links in given:
        write_links(tmp_path, links)
    assert sorted(path.read_text().strip() for path in tmp_path.iterdir()) == sorted(itertools.chain(*given))


def test_links_that_could_not_be_handed_over_are_never_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[object] = []

    def create(*_: object, **__: object) -> list[str]:
        made.append(1)
        return []

    monkeypatch.setattr("coordinator.edge.operator_client.create_invites", create)
    monkeypatch.setattr("coordinator.run.folder.RunFolder.open", lambda root: root)
    (tmp_path / "file").touch()
    assert run(["coordinator", "invite", str(tmp_path), "--to", str(tmp_path / "file" / "links")]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert made == []


def test_links_are_for_their_owner_only(tmp_path: Path) -> None:
    (path,) = write_links(tmp_path / "links", ["barnraise://one"])
    assert path.stat().st_mode & 0o077 == 0

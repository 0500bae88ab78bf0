"""What the doctor finds, and that each thing found wrong comes with how to mend it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from barnraise.cli.app import run
from protocol.errors import Unauthenticated, Unavailable
from protocol.joinlink import JoinLink
from worker import checkup
from worker.checkup import Finding, Soundness, of_clock, of_disk, of_memory, of_packages, of_python, of_rules, of_run
from worker.rules.file import RULES_FILE, set_rule
from worker.senses.sense import Senseless, Senses

LINK = JoinLink(host="coordinator.example.org", port=7465, fingerprint="ab" * 32)
GIB = 1 << 30


def fails(error: Exception) -> Callable[..., Any]:
    def call(*_: object) -> Any:
        raise error

    return call


def of_way(environment: Mapping[str, str] | None = None, **how: Any) -> list[Finding]:
    return list(of_run(LINK, environment or {}, **{"resolve": lambda *_: [], "greet": lambda *_: b"pem", **how}))


class Deaf:
    """Nothing tells."""

    fields = frozenset({"idle_s"})

    def read(self) -> Mapping[str, object]:
        raise Senseless("nobody tells")


def missing(package: str) -> str:
    if package == "grpcio":
        raise metadata.PackageNotFoundError(package)
    return "1.0"


BAD: dict[str, Callable[[], Finding]] = {
    "install Python 3.11": lambda: of_python((3, 10), release="3.10.2"),
    "--force-reinstall": lambda: of_packages(missing),
    "close other programs": lambda: of_memory(GIB // 2),
    "make room": lambda: of_disk(Path("/home"), GIB // 4),
    "--home FOLDER": lambda: of_disk(Path("/home"), None, "read-only file system"),
    "set-ntp": lambda: of_clock(0.0, 1.7e9),
    "is this machine online": lambda: of_way(resolve=fails(OSError("Name or service not known")))[-1],
    "firewall let TCP to port 7465": lambda: of_way(greet=fails(Unavailable("no")))[-1],
    "a firewall that opens TLS": lambda: of_way(greet=fails(Unauthenticated("other")))[-1],
}


@pytest.mark.parametrize("mend", BAD)
def test_what_is_wrong_comes_with_how_to_mend_it(mend: str) -> None:
    finding = BAD[mend]()
    assert finding.outcome is Soundness.BAD
    assert mend in finding.mend


def test_what_is_right_needs_nothing() -> None:
    good = [of_python(), of_packages(), of_memory(4 * GIB), of_disk(Path("/home"), 9 * GIB), of_clock(2e9, 1.7e9)]
    for finding in (*good, *of_way()):
        assert (finding.outcome, finding.mend) == (Soundness.GOOD, "")


def test_little_room_is_a_note_and_a_proxy_is_named_where_it_may_matter() -> None:
    assert of_memory(int(1.5 * GIB)).outcome is of_disk(Path("/home"), GIB).outcome is Soundness.NOTE
    proxy = {"HTTPS_PROXY": "http://proxy:3128"}
    assert [finding.outcome for finding in of_way(proxy)] == [Soundness.GOOD, Soundness.GOOD, Soundness.NOTE]
    assert "HTTPS_PROXY is set, and is not used" in of_way(proxy, greet=fails(Unavailable("no")))[-1].mend


def test_rules_that_make_no_sense_or_cannot_be_checked_here(tmp_path: Path) -> None:
    senses = Senses([Deaf()], lambda: 0.0)
    path = tmp_path / RULES_FILE
    set_rule(path, "when.battery", "work")
    assert [finding.outcome for finding in of_rules(tmp_path, senses)] == [Soundness.GOOD]
    set_rule(path, "when.idle_minutes", "5")
    (finding,) = of_rules(tmp_path, senses)
    assert (finding.outcome, finding.found) == (Soundness.BAD, "a rule does not work here: nobody tells")
    set_rule(path, "when.unknown", "work")
    assert next(of_rules(tmp_path, senses)).outcome is Soundness.NOTE
    path.write_text("[when")
    assert next(of_rules(tmp_path, senses)).outcome is Soundness.BAD


def test_the_command_says_it_all_and_ends_with_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkup, "of_gpu", lambda: Finding(name="GPU", outcome=Soundness.GOOD, found="none"))
    monkeypatch.setattr(checkup, "of_memory", lambda _: Finding(name="memory", outcome=Soundness.GOOD, found="much"))
    arguments = ["doctor", "--home", str(tmp_path), "--json"]
    code = run(arguments)
    found = json.loads(capsys.readouterr().out)
    names = [finding["name"] for finding in found["findings"]]
    assert names == ["Python", "packages", "memory", "disk", "clock", "rules", "run", "GPU"]
    assert code == (1 if found["bad"] else 0)
    (tmp_path / RULES_FILE).write_text("[when")
    assert run(arguments[:-1]) == 1
    said = capsys.readouterr().out
    assert "BAD   rules" in said
    assert "to be mended before this machine can train" in said

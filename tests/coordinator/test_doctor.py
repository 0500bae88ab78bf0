"""What the doctor finds, from figures; and that it tells a served run from a stopped one and from a stranger."""

from __future__ import annotations

import asyncio
import json
import os

import pytest

from barnraise.cli.app import run as barnraise
from coordinator.edge.server import CoordinatorServer
from coordinator.run import doctor
from coordinator.run.doctor import Concern, advertised_found, certificate_found, clock_found, disk_found, name_found
from coordinator.run.folder import RunFolder
from coordinator.settings import RunSettings
from protocol.private_files import write_private

NOW_S = 1_800_000_000.0


def settle(run: RunFolder, **changes: object) -> None:
    write_private(run.root / "settings.toml", run.settings().model_copy(update=changes).to_toml().encode())


@pytest.mark.parametrize(
    ("resolved", "concern"), [(("192.0.2.7",), Concern.OK), ((), Concern.TROUBLE), (None, Concern.TROUBLE)]
)
def test_a_name_must_lead_somewhere(resolved: tuple[str, ...] | None, concern: Concern) -> None:
    found = name_found("run.example.org", resolved)
    assert found.concern is concern
    assert bool(found.advice) == (concern is not Concern.OK)


@pytest.mark.parametrize(
    ("newest_s", "kept", "concern"),
    [
        (NOW_S, True, Concern.OK),
        (NOW_S + 59, None, Concern.OK),
        (NOW_S + 61, True, Concern.TROUBLE),
        (0.0, False, Concern.LOOK),
    ],
)
def test_a_clock_behind_the_journal_is_wrong(newest_s: float, kept: bool | None, concern: Concern) -> None:
    assert clock_found(newest_s, NOW_S, kept).concern is concern


@pytest.mark.parametrize(("free", "concern"), [(299, Concern.TROUBLE), (300, Concern.LOOK), (1000, Concern.OK)])
def test_room_is_counted_in_versions(free: int, concern: Concern) -> None:
    assert disk_found(free, 100).concern is concern


@pytest.mark.parametrize(
    ("begun", "left", "concern"),
    [(1, 3000, Concern.OK), (1, 29, Concern.LOOK), (1, -1, Concern.TROUBLE), (-1, 3000, Concern.TROUBLE)],
)
def test_a_certificate_near_its_end_is_told(begun: float, left: float, concern: Concern) -> None:
    assert certificate_found(begun, left).concern is concern


@pytest.mark.parametrize(
    ("host", "advertised", "concern"),
    [
        ("127.0.0.1", (), Concern.LOOK),
        ("127.0.0.1", ("run.example.org",), Concern.LOOK),
        ("0.0.0.0", (), Concern.LOOK),
        ("0.0.0.0", ("run.example.org:7600",), Concern.OK),
        ("192.0.2.7", (), Concern.OK),
    ],
)
def test_links_must_go_with_what_is_listened_on(
    run: RunFolder, host: str, advertised: tuple[str, ...], concern: Concern
) -> None:
    settings = run.settings().model_copy(update={"host": host, "advertised_hosts": advertised})
    assert advertised_found(settings).concern is concern


def test_of_a_stopped_run_the_port_is_not_tried(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def dialled(*_: object) -> bytes:
        raise AssertionError("nobody is there to be dialled")

    monkeypatch.setattr(doctor, "fetch_ca", dialled)
    first, *_ = doctor.examine(run)
    assert (first.name, first.concern) == ("coordinator", Concern.LOOK)


async def test_a_name_that_leads_nowhere_is_trouble_and_the_rest_is_well(
    run: RunFolder, server: CoordinatorServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_clock_is_kept", lambda: True)
    assert await asyncio.to_thread(barnraise, ["coordinator", "doctor", str(run.root)]) == 0
    assert f"process {os.getpid()} listens on 127.0.0.1:{server.port}" in capsys.readouterr().out
    settle(run, advertised_hosts=("127.0.0.1:1", "nowhere.invalid"))
    monkeypatch.setattr(doctor, "_resolved", lambda host: () if host.endswith(".invalid") else (host,))
    assert await asyncio.to_thread(barnraise, ["coordinator", "doctor", str(run.root), "--json"]) == 1
    found = {one["name"]: one["concern"] for one in json.loads(capsys.readouterr().out)}
    assert found["coordinator"] == "ok"
    assert (found["name 127.0.0.1"], found["port 127.0.0.1:1"]) == ("ok", "trouble")
    assert found["name nowhere.invalid"] == "trouble"
    assert "port nowhere.invalid" not in str(found)


def test_of_the_names_in_links_those_that_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, tuple[str, ...]] = {"barn.example": ("192.0.2.1",), "gone.example": ()}
    monkeypatch.setattr(doctor, "_resolved", known.__getitem__)
    settings = RunSettings(preset="tiny", data="stdlib", advertised_hosts=("barn.example", "gone.example:7"))
    assert doctor.leading_nowhere(settings) == ["gone.example"]

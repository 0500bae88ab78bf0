"""The background service: what each system is told, word for word, and in which order its program is called."""

from __future__ import annotations

import os
import plistlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import pytest

from barnraise.cli.app import run as run_command
from protocol.errors import ConfigError
from worker.service import control
from worker.service.control import Launchd, ProgramEnd, Systemd, WindowsTask, manager_here, terms_of
from worker.service.texts import ServiceTerms, launchd_plist, systemd_unit, windows_task

GOLDEN = Path(__file__).parent / "golden"
TERMS = ServiceTerms(
    command=("/opt/barn raise/bin/python", "-m", "barnraise", "worker", "join", "--home=/home/ann/50% & $more"),
    home=PurePosixPath("/home/ann/50% & $more"),
    log=PurePosixPath("/home/ann/worker.log"),
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("barnraise-worker.service", systemd_unit(TERMS)),
        ("barnraise-worker-open.service", systemd_unit(replace(TERMS, namespaces=False))),
        ("org.barnraise.worker.plist", launchd_plist(TERMS)),
        ("worker-task.xml", windows_task(TERMS, "BARN\\ann & <bob>")),
    ],
)
def test_what_is_written_is_what_was_looked_at(name, text):
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / name).write_text(text)
    assert (GOLDEN / name).read_text() == text


def test_a_command_line_comes_through_each_systems_quoting():
    unit = systemd_unit(TERMS)
    assert 'ExecStart="/opt/barn raise/bin/python" -m barnraise worker join "--home=/home/ann/50%% & $$more"' in unit
    assert 'ReadWritePaths="/home/ann/50%% & $more"' in unit
    assert "PrivateDevices" not in unit, "it would take the GPU away"
    plist = plistlib.loads(launchd_plist(TERMS).encode())
    assert tuple(plist["ProgramArguments"]) == TERMS.command
    task = ElementTree.fromstring(windows_task(TERMS, "ann & <bob>"))
    found = {one.tag.rpartition("}")[2]: one.text for one in task.iter()}
    assert found["Arguments"] == '-m barnraise worker join "--home=/home/ann/50% & $more"'
    assert found["UserId"] == "ann & <bob>"


class Programs:
    """Answers as the system's programs would."""

    def __init__(self, **answers: ProgramEnd) -> None:
        self.called: list[str] = []
        self._answers = answers

    def __call__(self, command: Sequence[str]) -> ProgramEnd:
        self.called.append(" ".join(command))
        words = [word for word in command if word in self._answers]
        return self._answers[words[0]] if words else ProgramEnd(code=0, text="")


def terms(tmp_path: Path) -> ServiceTerms:
    return replace(TERMS, home=tmp_path / "home")


def test_systemd_is_told_in_this_order_and_forgets_as_well(tmp_path, monkeypatch):
    monkeypatch.setenv("DISPLAY", ":0")
    programs = Programs(**{"show-user": ProgramEnd(code=0, text="yes\n")})
    manager = Systemd(programs, tmp_path)
    state = manager.install(terms(tmp_path), linger=True)
    assert (state.installed, state.running, state.at_boot) == (True, True, True)
    assert manager.path.read_text() == systemd_unit(terms(tmp_path))
    assert [one.removeprefix("systemctl --user ") for one in programs.called[1:5]] == [
        "daemon-reload", "enable --now barnraise-worker.service", "restart barnraise-worker.service",
        "loginctl enable-linger",
    ]  # fmt: skip
    assert programs.called[0].startswith("systemctl --user import-environment")
    assert "DISPLAY" in programs.called[0]
    programs = Programs(**{"is-active": ProgramEnd(code=3, text="inactive")})
    manager = Systemd(programs, tmp_path)
    gone = manager.remove()
    assert (gone.installed, gone.running) == (False, False)
    assert not manager.path.exists()
    assert manager.remove() == gone, "again is fine"


def test_a_system_that_refuses_says_why_in_a_sentence(tmp_path):
    refusing = Programs(enable=ProgramEnd(code=1, text="Failed to connect to bus: No medium found"))
    with pytest.raises(ConfigError, match=r"systemctl --user enable.*No medium found"):
        Systemd(refusing, tmp_path).install(terms(tmp_path), linger=False)
    absent = control.run_program(["barnraise-no-such-program"])
    assert absent.code == 127


def test_a_mac_and_windows_are_told_in_their_own_words(tmp_path):
    programs = Programs(print=ProgramEnd(code=0, text="\tstate = running\n"))
    mac = Launchd(programs, tmp_path)
    assert mac.install(terms(tmp_path), linger=False).running
    assert [one.split()[1] for one in programs.called] == ["bootout", "bootstrap", "print"]
    with pytest.raises(ConfigError, match="login"):
        mac.install(terms(tmp_path), linger=True)
    assert not mac.remove().installed
    programs = Programs(**{"/Query": ProgramEnd(code=0, text='"Barnraise worker","N/A","Running"')})
    windows = WindowsTask(programs, tmp_path)
    assert windows.install(terms(tmp_path), linger=False).running
    assert windows.path.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff"), "schtasks reads no UTF-8"
    assert [one.split()[1] for one in programs.called] == ["/Create", "/Run", "/Query"]
    with pytest.raises(ConfigError):
        windows.install(terms(tmp_path), linger=True)
    windows.remove()
    assert programs.called[-2].split()[1] == "/Delete"


def test_each_system_has_its_own_and_no_link_gets_into_a_command_line(monkeypatch, tmp_path):
    assert isinstance(manager_here(platform="darwin"), Launchd)
    assert isinstance(manager_here(platform="win32"), WindowsTask)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ConfigError, match="no systemd"):
        manager_here(platform="linux")
    with pytest.raises(ConfigError, match="join link"):
        terms_of(tmp_path, "barnraise://host:1/#abc.secret")
    assert terms_of(tmp_path, "host:1").command[-3:] == ("host:1", "--output=plain", f"--home={tmp_path}")
    assert terms_of(None, "").command[-2:] == ("join", "--output=plain")
    assert terms_of(None, "", "0,1").command[-2:] == ("--output=plain", "--gpus=0,1")
    with pytest.raises(ConfigError, match="twice"):
        terms_of(None, "", "0,0")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("kernel/unprivileged_userns_clone", "0", False), ("kernel/unprivileged_userns_clone", "1", True),
     ("user/max_user_namespaces", "0", False), ("kernel/apparmor_restrict_unprivileged_userns", "1", False)],
)  # fmt: skip
def test_a_kernel_that_gives_no_namespaces_gets_a_unit_without_them(tmp_path, name, value, allowed):
    assert control._has_namespaces(tmp_path)
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(f"{value}\n")
    assert control._has_namespaces(tmp_path) is allowed


def test_the_command_says_whether_it_stands_and_installs_nothing_for_nobody(tmp_path, monkeypatch, capsys):
    programs = Programs(**{"is-active": ProgramEnd(code=3, text="inactive"), "show-user": ProgramEnd(code=1, text="")})
    monkeypatch.setattr(control, "manager_here", lambda: Systemd(programs, tmp_path))
    assert run_command(["worker", "service", "status"]) == 1
    assert "not installed" in capsys.readouterr().out
    assert run_command(["worker", "service", "remove", "--json"]) == 0
    assert '"installed": false' in capsys.readouterr().out
    assert run_command(["worker", "service", "install", "--home", str(tmp_path)]) == 2
    assert "worker join LINK" in capsys.readouterr().err
    assert run_command(["worker", "service", "install", "--home", str(tmp_path), "--print"]) == 0
    assert "ExecStart=" in capsys.readouterr().out
    assert not (tmp_path / "systemd").exists()

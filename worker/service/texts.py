"""What each system is told of a worker that starts by itself: a systemd user unit, a launchd agent, a Windows task.

Decides how it is run: as its user and nobody else, at low priority, again after a fault but not after an end that was
meant or an error that a person has to mend. Pure functions of what is to be run. The sandbox of the unit leaves devices
open (`PrivateDevices` would take the GPU away) and memory executable (PyTorch makes code); its score is checked by
`make service-check`. Sources: systemd.exec(5), systemd.service(5), launchd.plist(5), Task Scheduler's XML schema.
"""

from __future__ import annotations

import plistlib
from dataclasses import dataclass
from pathlib import PurePath
from xml.sax.saxutils import escape

NAME = "barnraise-worker"
LAUNCHD_LABEL = "org.barnraise.worker"
WINDOWS_TASK = "Barnraise worker"
RESTART_S = 30
STOP_S = 20
"""A worker leaves within 2 s; a step on a device that cannot be interrupted may take longer."""


_ALWAYS = """\
NoNewPrivileges=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
LockPersonality=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @mount @swap @reboot @obsolete @cpu-emulation
SystemCallErrorNumber=EPERM
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTerms:
    """What is to be run."""

    command: tuple[str, ...]
    """With its arguments; no invite is among them."""
    home: PurePath
    """Where the worker keeps everything: all that it writes to."""
    log: PurePath
    """Where its lines go on systems that keep none themselves."""
    namespaces: bool = True
    """Whether this kernel lets users have namespaces of their own, which a user's sandbox is made of."""


def systemd_unit(terms: ServiceTerms) -> str:
    """A unit of the user's own manager."""
    return f"""\
[Unit]
Description=Barnraise: trains on this machine, by its owner's rules
After=graphical-session.target
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={" ".join(map(_systemd_word, terms.command))}
# 0: the run is over, or its volunteer left; 2: something that a person has to mend
Restart=on-failure
RestartPreventExitStatus=2
RestartSec={RESTART_S}
TimeoutStopSec={STOP_S}
KillMode=mixed
Nice=10
IOSchedulingClass=idle
OOMScoreAdjust=500
UMask=0077

{_sandbox(terms)}
[Install]
WantedBy=default.target
"""


def _sandbox(terms: ServiceTerms) -> str:
    if not terms.namespaces:
        return f"# This kernel gives its users no namespaces, so files are not fenced off.\n{_ALWAYS}"
    return f"""\
# It writes to its own home and to nothing else of this machine.
PrivateUsers=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={_systemd_path(str(terms.home))}
PrivateTmp=yes
CapabilityBoundingSet=
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
{_ALWAYS}"""


def launchd_plist(terms: ServiceTerms) -> str:
    """An agent of the user's session. Written after its documentation; no Mac was at hand to try it."""
    return plistlib.dumps(
        {
            "Label": LAUNCHD_LABEL,
            "ProgramArguments": list(terms.command),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": RESTART_S,
            "ExitTimeOut": STOP_S,
            "ProcessType": "Background",
            "LowPriorityIO": True,
            "Nice": 10,
            "Umask": 0o077,
            "StandardOutPath": str(terms.log),
            "StandardErrorPath": str(terms.log),
        }
    ).decode()


def windows_task(terms: ServiceTerms, user: str) -> str:
    """A task of the user's own, at logon. Written after its schema; no Windows was at hand to try it."""
    program, *arguments = terms.command
    return f"""\
<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo>
    <Description>Barnraise: trains on this machine, by its owner's rules</Description>
  </RegistrationInfo>
  <Triggers>
    <LogonTrigger>
      <UserId>{escape(user)}</UserId>
    </LogonTrigger>
  </Triggers>
  <Principals>
    <Principal id="Author">
      <UserId>{escape(user)}</UserId>
      <LogonType>InteractiveToken</LogonType>
      <RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Priority>7</Priority>
    <RestartOnFailure>
      <Interval>PT1M</Interval>
      <Count>999</Count>
    </RestartOnFailure>
  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>{escape(program)}</Command>
      <Arguments>{escape(" ".join(map(_windows_word, arguments)))}</Arguments>
    </Exec>
  </Actions>
</Task>
"""


def _systemd_word(word: str) -> str:
    """One word of a command line as systemd reads it: specifiers and variables are none of ours."""
    return _systemd_path(word.replace("$", "$$"))


def _systemd_path(word: str) -> str:
    """One word of a list, in which there are no variables."""
    quoted = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return (
        f'"{quoted}"' if not word or any(character.isspace() or character in "\"'\\;" for character in word) else quoted
    )


def _windows_word(word: str) -> str:
    """One argument as the C runtime reads it; our arguments are paths, addresses and options."""
    if word and not any(character in ' \t"' for character in word):
        return word
    doubled = word.replace('"', '\\"')
    ends = len(doubled) - len(doubled.rstrip("\\"))
    return f'"{doubled}{chr(92) * ends}"'

"""The sidecar's keeper: starts it, speaks to it, starts it again when it ends, and leaves nothing of it behind.

Decides when it is started again (at once, then after ever longer pauses) and when it has grown too large. Always: it is
given no key of the run or of the worker, and an environment without anything that it does not need; when it ends,
however it does, its whole process group is killed and its folder removed; and what a killed process of ours left is
swept at the next start. A person whose peer-to-peer network does not work has a worker that works without. Touches
processes, a private folder for sockets, and one small file that says which these are.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from peering.record import MAX_RECORD_BYTES
from protocol import local_socket
from protocol.errors import BarnraiseError, ConfigError, MalformedMessage, Unavailable
from protocol.ids import Digest
from protocol.joinlink import Bootstrap
from protocol.parent import as_parent
from protocol.private_files import write_private
from protocol.text import printable

READY_S = 240.0
"""Until it answers: 7 s on a quiet machine; above a minute was seen on one that is busy, as those are that train."""
ASK_S = 15.0
POLL_S = 0.1
LOOK_S = 2.0
"""So often its size is looked at."""
MOST_BYTES = 1 << 30
"""Of memory, with p2pd; 400 MB are usual."""
MOST_SAID_BYTES = 1 << 20
GOODBYE_S = 0.5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
LONG_LIFE_S = 120.0
"""After so long it counts as having worked: the next pause is the first again."""
SOCKET = "sidecar.sock"
_SAID = "said"
_PREFIX = "barnraise-p2p-"
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV")

Orders = Callable[[Path], bytes]
"""What the sidecar is told, as one line of JSON, where its sockets lie in this folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarStatus:
    """What it says of itself."""

    peer_id: str
    addresses: tuple[Bootstrap, ...]
    """Where it is reached."""
    peers: tuple[Bootstrap, ...]
    """Whom it is connected to."""


class Companion:
    """One sidecar at a time. `start` once, `stop` once."""

    def __init__(
        self,
        orders: Orders,
        traces: Path,
        *,
        command: Sequence[str] = (sys.executable, "-m", "peering.sidecar"),
        on_ready: Callable[[], Awaitable[None]] | None = None,
        tell: Callable[[str], None] = lambda _text: None,
        most_bytes: int = MOST_BYTES,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        """`traces`: the file that says what to sweep. `on_ready` is awaited each time that a sidecar has started;
        `tell` hears why one ended."""
        self._orders, self._traces, self._command = orders, traces, tuple(command)
        self._on_ready, self._tell, self._most_bytes = on_ready, tell, most_bytes
        self._first_pause_s = first_pause_s
        self._task: asyncio.Task[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self.ready = asyncio.Event()
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Of the sidecar that runs."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Sweep what is left of an earlier one, and begin; nothing is waited for."""
        sweep(self._traces)
        self._task = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End it, within a second or two."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    # ---- what it is asked -------------------------------------------------------------------------------------------

    async def find(self, _fingerprint: Digest) -> bytes:
        """The newest record of the run that its network has; empty: none, or there is no sidecar at present."""
        answer = await self._ask({"do": "find"})
        return _record_in(answer)

    async def store(self, record: bytes) -> bool:
        """Pass a record on; whether somebody took it."""
        return bool((await self._ask({"do": "store", "record": record.hex()})).get("stored"))

    async def enter(self, through: Sequence[Bootstrap]) -> int:
        """Get to know these peers; how many answered."""
        answered = (await self._ask({"do": "enter", "through": list(map(str, through))})).get("answered")
        return answered if isinstance(answered, int) else 0

    async def status(self) -> SidecarStatus:
        """What it says of itself."""
        answer = await self._ask({"do": "status"})
        return SidecarStatus(
            peer_id=printable(str(answer.get("peer_id", ""))[:80]),
            addresses=_peers_in(answer.get("addresses")),
            peers=_peers_in(answer.get("peers")),
        )

    # ---- ways to those who cannot be reached ------------------------------------------------------------------------

    async def wait_at(self, relays: Sequence[Bootstrap], port: int, shown: bytes) -> tuple[str, tuple[Bootstrap, ...]]:
        """Be reached through some of these, at this machine's `port`: by which name, and through which. `shown`: the
        node's pass, here and below."""
        request = {"do": "wait_at", "through": list(map(str, relays)), "port": port, "pass": shown.hex()}
        answer = await self._ask(request)
        return printable(str(answer.get("peer_id", ""))[:80]), _peers_in(answer.get("at"))

    async def reach(self, peer_id: str, through: Sequence[Bootstrap], shown: bytes) -> Path:
        """A Unix socket behind which that node is."""
        request = {"do": "reach", "peer": peer_id, "through": list(map(str, through)), "pass": shown.hex()}
        answer = await self._ask(request)
        return Path(str(answer.get("path", "")))

    async def relay(self, grant: int) -> int:
        """So many bytes more may be passed on; answers, at once or after seconds, how many more are of use."""
        wants = (await self._ask({"do": "relay", "grant": grant})).get("wants")
        return wants if isinstance(wants, int) else 0

    async def relays_at(self, peer: Bootstrap, shown: bytes) -> bool:
        """Whether that node passes streams on, as seen from here."""
        return (await self._ask({"do": "try", "through": [str(peer)], "pass": shown.hex()})).get("relays") is True

    async def _ask(self, request: local_socket.Json) -> local_socket.Json:
        if self._folder is None:
            raise Unavailable("there is no sidecar at present")
        return await local_socket.ask(self._folder / SOCKET, request, timeout_s=ASK_S)

    # ---- its life ---------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        pause_s, told = self._first_pause_s, ""
        loop = asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            why = await self._live_once()
            if why != told:
                self._tell(why)
                told = why
            if loop.time() - began_s > LONG_LIFE_S:
                pause_s, told = self._first_pause_s, ""
            await asyncio.sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, 2.0 * pause_s)

    async def _live_once(self) -> str:
        """One sidecar from its start to its end; why it ended."""
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        try:
            self._process = process = self._started(folder)
            self.starts += 1
            self._leave_traces(folder, process.pid)
            self._folder = folder
            why = await self._watch(process, folder / _SAID)
            return _end_of(folder / _SAID) or why
        except OSError as error:
            return printable(error.strerror or "it cannot be started")
        finally:
            self.ready.clear()
            process_now, self._process, self._folder = self._process, None, None
            await asyncio.shield(_put_away(process_now, folder))
            self._traces.unlink(missing_ok=True)

    def _started(self, folder: Path) -> subprocess.Popen[bytes]:
        """A sidecar that has its orders.

        Not as asyncio starts one: that waits for whoever has inherited a pipe, which a child that is left may do for
        ever. What it says goes to a file for the same reason.
        """
        with (folder / _SAID).open("wb") as said:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
                env=_environment(),
            )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already: who watches it will see
            process.stdin.write(self._orders(folder) + b"\n")
            process.stdin.flush()
        return process

    async def _watch(self, process: subprocess.Popen[bytes], said: Path) -> str:
        getting_ready = asyncio.ensure_future(self._get_ready())
        look_in_s = LOOK_S
        try:
            while process.poll() is None:
                await asyncio.sleep(POLL_S)
                look_in_s -= POLL_S
                if look_in_s > 0:
                    continue
                look_in_s, size_bytes = LOOK_S, _size_of(process.pid)
                if size_bytes > self._most_bytes:
                    return f"it took {size_bytes // 2**20} MiB of memory, at most {self._most_bytes // 2**20}"
                if getting_ready.done() and not self.ready.is_set():
                    return f"it did not answer within {READY_S:g} s"
                if os.stat(said).st_size > MOST_SAID_BYTES:  # noqa: PTH116
                    return "it would not stop complaining"
            return f"exit code {process.returncode}"
        finally:
            getting_ready.cancel()
            await asyncio.gather(getting_ready, return_exceptions=True)

    async def _get_ready(self) -> None:
        async with asyncio.timeout(READY_S):
            while True:
                with contextlib.suppress(BarnraiseError, OSError):
                    await self.status()
                    break
                await asyncio.sleep(0.1)
        self.ready.set()
        if self._on_ready is not None:
            with contextlib.suppress(BarnraiseError, OSError):
                await self._on_ready()

    def _leave_traces(self, folder: Path, group: int) -> None:
        with contextlib.suppress(BarnraiseError, OSError):
            write_private(self._traces, json.dumps({"folder": str(folder), "group": group}).encode())


def sweep(traces: Path) -> None:
    """End and remove what a process of ours that was killed has left, as far as it is still that."""
    try:
        left = json.loads(traces.read_bytes())
        folder, group = Path(str(left["folder"])), int(left["group"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return
    if not folder.name.startswith(_PREFIX):
        return
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            # by its group alone it could be somebody else's by now; p2pd has the folder in its command line
            if os.getpgid(process.pid) == group and _is_ours(process, folder):
                process.kill()
    shutil.rmtree(folder, ignore_errors=True)
    traces.unlink(missing_ok=True)


def _is_ours(process: psutil.Process, folder: Path) -> bool:
    line = process.cmdline()
    return any(str(folder) in part for part in line) or line[-1:] == ["peering.sidecar"]


async def _put_away(process: subprocess.Popen[bytes] | None, folder: Path) -> None:
    """Let it end by itself for a moment, then kill its group, and remove its folder."""
    if process is not None:
        if process.stdin is not None:
            process.stdin.close()
        for _ in range(int(GOODBYE_S / POLL_S)):
            if process.poll() is not None:
                break
            await asyncio.sleep(POLL_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _end_of(said: Path) -> str:
    """The last that it said."""
    with contextlib.suppress(OSError), said.open("rb") as file:
        file.seek(max(0, said.stat().st_size - 200))
        return printable(file.read().decode(errors="replace")).strip()
    return ""


def _size_of(pid: int) -> int:
    """Bytes of memory of the process and those below it."""
    total = 0
    with contextlib.suppress(psutil.Error):
        first = psutil.Process(pid)
        for process in (first, *first.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def _environment() -> dict[str, str]:
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    root = str(Path(__file__).parents[1])
    quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HIVEMIND_LOGLEVEL": "CRITICAL"}
    return {**passed, **quiet, **as_parent(), "PYTHONPATH": root, "PYTHONSAFEPATH": "1"}


def _record_in(answer: Any) -> bytes:
    text = answer.get("record", "")
    if not isinstance(text, str) or len(text) > 2 * MAX_RECORD_BYTES:
        raise MalformedMessage("the sidecar's record is none")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise MalformedMessage("the sidecar's record is none") from None


def _peers_in(told: object) -> tuple[Bootstrap, ...]:
    found = []
    for one in told[:64] if isinstance(told, list) else ():
        with contextlib.suppress(ConfigError):
            found.append(Bootstrap.parse(str(one)[:400]))
    return tuple(found)

"""What the standby commands do: processes that run until a signal, and orders to them.

Decides what a signal means for a follower and a witness: they stop, and go on with the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from barnraise.cli.serve import Serving, serve
from coordinator.edge.following import Follower, following_of, lead, state_as_plain
from coordinator.edge.operator_client import order_standby
from coordinator.edge.standby_desk import change_standby_while_stopped
from coordinator.edge.witnessing import WitnessProcess
from coordinator.page.address import PageAddress
from coordinator.run.eventlog import configure_logging
from coordinator.run.folder import RunFolder
from coordinator.run.lock import folder_lock
from coordinator.run.reaching import CoordinatorStopped
from coordinator.run.seats import FOLLOW_SCHEME, WITNESS_SCHEME, link_text, parse_link
from protocol import local_socket
from protocol.errors import MalformedMessage
from protocol.local_socket import Caller, Json, NobodyListens
from protocol.terminal import ending_signals, outliving_terminal


def _socket(folder: Path) -> Path:
    return folder / "control" / "follower.sock"


async def keep_following(link: str, folder: Path, take_over_s: float | None) -> int:
    """Follow until a signal, or a promotion; the exit code. Who takes over serves the run at once."""
    configure_logging()
    parsed = None if link == "-" else parse_link(link, FOLLOW_SCHEME)
    with outliving_terminal():
        async with _told_to_stop() as told:
            follower = Follower(folder, parsed, take_over_s=take_over_s)
            last = [""]

            def say() -> None:
                now = _described(follower)
                if now.partition(" up to")[0] != last[0]:
                    last[0] = now.partition(" up to")[0]
                    print(now, file=sys.stderr, flush=True)

            follower.changed = say
            listening = await local_socket.serve(_socket(folder), _answering(follower))
            following = asyncio.create_task(follower.run())
            stopped = asyncio.create_task(told.wait())
            try:
                await asyncio.wait({following, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if following.done():
                    following.result()
            finally:
                for task in (following, stopped):
                    task.cancel()
                await asyncio.gather(following, stopped, return_exceptions=True)
                await listening.close()
                follower.close()
        if not follower.promoted.is_set():
            return 0
        print(f"promoted: {folder} leads the run in epoch {follower.following.seat.epoch}", file=sys.stderr, flush=True)
        if take_over_s is None:
            return 0
    page = PageAddress.parse(None, ())
    lock = folder_lock(folder)
    lock.acquire()
    wanted = Serving(invites=0, invites_to=None, trusted=False, page=page, as_json=False, traces=None, lock=lock)
    return await serve(folder, wanted)


def _answering(follower: Follower) -> Any:
    async def answer(request: Json, _: Caller) -> Json:
        match request.get("verb"):
            case "promote":
                return {"epoch": await follower.promote(confirmed=request.get("confirmed") is True)}
            case "status":
                return state_as_plain(follower.state)
        raise MalformedMessage("a follower knows promote and status")

    return answer


def promoted(folder: Path, *, confirmed: bool) -> int:
    """Promote the follower in `folder`, whether it runs or not; the new epoch."""
    try:
        answer = asyncio.run(local_socket.ask(_socket(folder), {"verb": "promote", "confirmed": confirmed}))
        return int(answer["epoch"])
    except NobodyListens:
        RunFolder.open(folder)
        lock = folder_lock(folder)
        lock.acquire()
        try:
            return asyncio.run(lead(folder, following_of(folder), confirmed=confirmed))
        finally:
            lock.release()


def change_standby(folder: Path, *, mode: str, witness: str, confirmed: bool) -> Json:
    """What was ordered, done; how the standby is then."""
    run = RunFolder.open(folder)
    try:
        return order_standby(run, mode=mode, witness=witness, confirmed=confirmed)
    except CoordinatorStopped:
        if not (mode or witness):
            raise
        return change_standby_while_stopped(run, mode=mode, witness=witness, confirmed=confirmed)


def _described(follower: Follower) -> str:
    """A follower, in one line."""
    state = follower.state
    if state.trouble:
        return state.trouble
    wait = "it waits for this machine (sync)" if state.leader_waits else "it does not wait (async)"
    return f"has everything up to event {state.position}, {state.behind} behind the leader; {wait}"


async def keep_witnessing(folder: Path, host: str, port: int) -> int:
    """Answer until a signal."""
    configure_logging()
    with outliving_terminal():
        async with _told_to_stop() as told:
            process = WitnessProcess(folder)
            link = await process.start(host, port)
            try:
                print(link_text(link, WITNESS_SCHEME), flush=True)
                print(
                    "\non the run's machine:   barnraise coordinator standby RUN --witness LINK   (with the address by "
                    "which it reaches this machine)",
                    file=sys.stderr,
                    flush=True,
                )
                await told.wait()
            finally:
                await process.stop()
    return 0


@contextlib.asynccontextmanager
async def _told_to_stop() -> AsyncIterator[asyncio.Event]:
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    signals = ending_signals()
    for number in signals:
        loop.add_signal_handler(number, told.set)
    try:
        yield told
    finally:
        for number in signals:
            loop.remove_signal_handler(number)

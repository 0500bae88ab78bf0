"""Where a leader, its follower and their witness are killed: each a real process that kills itself at a named place.

The places of a leader are those of a coordinator (`dooms.py`) and what a standby adds. Timers are shorter than in life
(`_hurry`), nothing else is changed: the processes run what the commands run.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import faulthandler
import importlib
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from coordinator.store.journal import Moment
from tests.soak.dooms import Doom, Executioner, all_dooms, fail_once, watch_files

PRELOAD = ("simulator.processes.preload", "barnraise.cli.serve", "barnraise.cli.standby_runs", __name__)
SEATS = ("entering", "sync", "leaving", "async")
LEADERS = (
    "shipping", "shipped", "acknowledgement heard", "acknowledgement taken", "follower attaching", "base taken",
    "witness asked", "witness answered",
    *(f"seat {mode} {when}" for mode in SEATS for when in ("begun", "kept")),
)  # fmt: skip
FOLLOWERS = (
    "blob written", "blob in place", "record inserted", "record committed", "record applying", "record applied",
    "acknowledging", "acknowledged", "follower cutting", "follower cut",
)  # fmt: skip
BEGINNINGS = (
    "base begun", "base fetched", "base half in place", "base in place", "seat follows, whole begun",
    "seat follows, whole kept", "seat follows, in part begun", "seat follows, in part kept",
)  # fmt: skip
"""Of a follower that gets the whole run."""
PROMOTIONS = ("promotion ordered", "promotion answered", "seat leads, whole begun", "seat leads, whole kept")
WITNESSES = ("asked", "judged", "granted, not written", "granted, written")


def all_standby_dooms() -> dict[str, list[Doom]]:
    """By who dies: every kind of place once."""
    return {
        "leader": [*all_dooms(), *(Doom(moment=moment) for moment in LEADERS)],
        "follower": [Doom(moment=moment) for moment in (*FOLLOWERS, *BEGINNINGS, *PROMOTIONS)],
        "witness": [Doom(moment=moment) for moment in WITNESSES],
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one process is to be."""

    role: str
    folder: Path
    ledger: Path
    doom: Doom
    link: str = ""
    port: int = 0
    witness: tuple[int, int] = (0, 0)
    """The port that the witness's link names, and the one by which this machine reaches it."""


def part_played(part: Part, pipe: Connection) -> None:
    """Be a leader, a follower or a witness until death. Says when it listens, and hears of other dooms."""
    import torch

    from barnraise.cli import standby_runs

    torch.set_num_threads(1)
    faulthandler.register(signal.SIGUSR1)  # what a process that does not end is doing, into its log
    executioner = Executioner(part.doom, part.ledger)
    threading.Thread(target=_hear, args=(executioner, pipe), daemon=True).start()
    _hurry()
    _reach_witness_by(*part.witness)
    match part.role:
        case "leader":
            _lead(part, executioner, pipe)
        case "follower":
            _watch_follower(executioner)
            asyncio.run(standby_runs.keep_following(part.link, part.folder, None))
        case "witness":
            _watch_witness(executioner)
            asyncio.run(standby_runs.keep_witnessing(part.folder, "127.0.0.1", part.port))


def _hear(executioner: Executioner, pipe: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            executioner.arm(pipe.recv())


def _hurry() -> None:
    """Ask, dial again and give up sooner, so that a kill costs a second instead of ten; and snapshot often."""
    from coordinator.edge import dialling, following, leader_line, standby_service, witnessing
    from coordinator.run import followed, replication

    changed: list[tuple[Any, str, float]] = [
        (replication, "TICK_S", 0.5), (standby_service, "TICK_S", 0.5), (following, "PAUSE_S", 0.2),
        (leader_line, "SILENT_S", 3.0), (dialling, "CONNECT_S", 3.0), (witnessing, "CALL_TIMEOUT_S", 3.0),
        (followed, "SNAPSHOT_EVERY", 11),
    ]  # fmt: skip
    for module, name, value in changed:
        assert hasattr(module, name)
        setattr(module, name, value)


def _module(name: str) -> Any:
    """To be changed in this process."""
    return importlib.import_module(name)


def _reach_witness_by(named: int, dialled_port: int) -> None:
    witnessing = _module("coordinator.edge.witnessing")
    dialled = witnessing.dialled

    async def rerouted(link: Any) -> Any:
        return await dialled(dataclasses.replace(link, port=dialled_port) if link.port == named else link)

    witnessing.dialled = rerouted


def _lead(part: Part, executioner: Executioner, pipe: Connection) -> None:
    from coordinator.run.lock import folder_lock
    from coordinator.run.pump_limits import PumpLimits

    serve = _module("barnraise.cli.serve")
    watch_files(executioner)
    _watch_leader(executioner)
    if part.doom.kind == "CommandFailed":
        fail_once()
    start = serve.CoordinatorServer.start

    async def started(self: Any) -> int:
        port = await start(self)
        pipe.send(port)
        return port

    serve.CoordinatorServer.start = started
    often = part.doom.moment in (Moment.CUTTING, Moment.CUT)  # else a follower would begin anew after most deaths
    limits = PumpLimits(snapshot_every=11 if often else 150)
    serve.CoordinatorServer = partial(serve.CoordinatorServer, journal_observer=executioner.observe, pump_limits=limits)
    lock = folder_lock(part.folder)
    lock.acquire()
    wanted = serve.Serving(
        invites=0, invites_to=None, trusted=False, page=None, as_json=False, traces=None, lock=lock
    )  # fmt: skip
    asyncio.run(serve.serve(part.folder, wanted))


def _around(owner: Any, name: str, executioner: Executioner, before: str = "", after: str = "") -> None:
    """Places before and after a function that blocks or not."""
    inner = getattr(owner, name)

    if asyncio.iscoroutinefunction(inner):

        async def awaited(*arguments: Any, **named: Any) -> Any:
            executioner.reach(before)
            result = await inner(*arguments, **named)
            executioner.reach(after)
            return result

        setattr(owner, name, awaited)
        return

    def called(*arguments: Any, **named: Any) -> Any:
        executioner.reach(before)
        result = inner(*arguments, **named)
        executioner.reach(after)
        return result

    setattr(owner, name, called)


def _around_seats(module: Any, executioner: Executioner, told: Callable[[Any], str]) -> None:
    keep = module.keep_seat

    def kept(root: Path, seat: Any) -> None:
        executioner.reach(f"seat {told(seat)} begun")
        keep(root, seat)
        executioner.reach(f"seat {told(seat)} kept")

    module.keep_seat = kept


def _watch_leader(executioner: Executioner) -> None:
    from coordinator.run import replication
    from coordinator.run.shipping import Shipment
    from coordinator.standby.leading import Leading

    _around(Shipment, "hold", executioner, "shipping", "shipped")
    _around(replication.Replication, "acknowledged", executioner, "acknowledgement heard", "acknowledgement taken")
    _around(replication.Replication, "attach", executioner, "follower attaching")
    _around(replication, "take_base", executioner, after="base taken")
    _around(replication.Replication, "_asked", executioner, "witness asked")
    _around(Leading, "on_witness", executioner, "witness answered")
    _around_seats(replication, executioner, lambda seat: str(seat.mode.value))


def _watch_follower(executioner: Executioner) -> None:
    from coordinator.edge import following, leader_line
    from coordinator.run import followed
    from coordinator.standby.following import Following

    _around(leader_line, "put_in_place", executioner, "blob written", "blob in place")
    _around(leader_line.LeaderLine, "acknowledge", executioner, "acknowledging", "acknowledged")
    _around(followed.FollowedRun, "_apply", executioner, "record applying", "record applied")
    _around(following, "begin_incoming", executioner, after="base begun")
    _around(following, "move_in", executioner, "base fetched", "base in place")
    _around(Path, "rename", executioner, after="base half in place")
    _around(Following, "on_promotion_ordered", executioner, after="promotion ordered")
    _around(Following, "on_witness", executioner, "promotion answered")
    _around_seats(following, executioner, lambda seat: f"{seat.role.value}, {'whole' if seat.whole else 'in part'}")
    begin = followed.FollowedRun.__init__
    places = {
        Moment.INSERTED: "record inserted", Moment.COMMITTED: "record committed", Moment.CUTTING: "follower cutting",
        Moment.CUT: "follower cut",
    }  # fmt: skip

    def begun(self: Any, folder: Any) -> None:
        begin(self, folder)
        self._journal._observer = lambda moment, _: executioner.reach(places[moment])

    followed.FollowedRun.__init__ = begun  # type: ignore[method-assign]


def _watch_witness(executioner: Executioner) -> None:
    witnessing = _module("coordinator.edge.witnessing")
    judged, asked = witnessing.judged, witnessing.WitnessProcess._read

    def looked(held: Any, request: Any) -> Any:
        answer = judged(held, request)
        executioner.reach("granted, not written" if answer.granted else "judged")
        return answer

    def read(self: Any, body: bytes) -> Any:
        executioner.reach("asked")
        return asked(self, body)

    witnessing.judged = looked
    witnessing.WitnessProcess._read = read
    keep = witnessing.write_private

    def kept(path: Path, content: bytes) -> None:
        keep(path, content)
        if path.name == "witness.json":
            executioner.reach("granted, written")

    witnessing.write_private = kept

"""Serves one run in the foreground: what `barnraise coordinator run` does.

Decides what SIGTERM, Ctrl-C and a closed terminal mean for a coordinator: it stops serving, and the run goes on at the
next start. Under `nohup` a closed terminal means nothing.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from barnraise.cli.links import give_links, require_writable
from coordinator.edge.server import CoordinatorServer
from coordinator.edge.tracing import Tracing
from coordinator.page.address import PageAddress
from coordinator.run.eventlog import configure_logging
from coordinator.run.folder import RunFolder
from coordinator.run.run_log import RunLog
from protocol.allocator import keep_little
from protocol.collection import collect_rarely, keep_what_is_read
from protocol.file_lock import FileLock
from protocol.terminal import ending_signals, outliving_terminal
from worker.machine.products import quickest_products
from worker.train.replay import replay_lease

STOP_GRACE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How a run is to be served."""

    invites: int
    invites_to: Path | None
    trusted: bool
    page: PageAddress | None
    as_json: bool
    traces: str | None
    """A collector's address."""
    lock: FileLock
    """The folder's, which this process has already."""


async def serve(folder: Path, wanted: Serving) -> int:
    """Serve until the run is over or a signal comes; the exit code."""
    with outliving_terminal():
        return await _serve(folder, wanted)


async def _serve(folder: Path, wanted: Serving) -> int:
    loop, told_to_stop = asyncio.get_running_loop(), asyncio.Event()
    signals = ending_signals()
    for number in signals:
        loop.add_signal_handler(number, told_to_stop.set)
    keep_little()
    collect_rarely()
    keep_what_is_read()
    run_folder = RunFolder.open(folder)
    configure_logging(RunLog(run_folder.log_path), as_json=wanted.as_json)
    device = run_folder.settings().evaluation_device
    replay = replay_lease(run_folder.layout(), device=device, experts=quickest_products(device, None))
    tracing = None if wanted.traces is None else Tracing(run_folder.run_id, wanted.traces)
    observers = () if tracing is None else (tracing.observer,)
    server = CoordinatorServer(run_folder, replay=replay, page=wanted.page, lock=wanted.lock, observers=observers)
    if wanted.invites and wanted.invites_to is not None:
        require_writable(wanted.invites_to)
    try:
        port = await server.start()
        print(f"listening on port {port}; the run is in {folder}", file=sys.stderr, flush=True)
        if server.page_url:
            print(f"its page is at {server.page_url}", file=sys.stderr, flush=True)
        if wanted.invites:
            links = await server.create_invites(count=wanted.invites, trusted=wanted.trusted)
            if wanted.as_json and wanted.invites_to is None:
                print(json.dumps({"event": "join_links", "join_links": links}), flush=True)
            else:
                give_links(links, to=wanted.invites_to)
        over, told = asyncio.ensure_future(server.finished()), asyncio.ensure_future(told_to_stop.wait())
        await asyncio.wait({over, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if over.done():
            over.result()
            print(f"the run is over: {server.summary().end_reason}", file=sys.stderr)
        else:
            over.cancel()
    finally:
        await server.stop(STOP_GRACE_S)
        if tracing is not None:
            await asyncio.to_thread(tracing.close)
        for number in signals:
            loop.remove_signal_handler(number)
    return 0

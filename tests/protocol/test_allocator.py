"""However many threads a process has, few arenas keep what they once needed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from barnraise.cli.serve import Serving, serve
from barnraise.cli.worker import join
from coordinator.run.lock import folder_lock
from simulator.processes.children import coordinator_process, worker_process

COUNT = """
import ctypes, sys, threading
from protocol.allocator import keep_little

said = keep_little() if sys.argv[1] == "asked" else None
ready, libc = threading.Barrier(9), ctypes.CDLL(None)

def hold():
    held = [bytes(100_000) for _ in range(4)]
    ready.wait()
    ready.wait()

for _ in range(8):
    threading.Thread(target=hold).start()
ready.wait()
print(said, flush=True)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
ready.wait()
"""


def arenas(how: str, **environment: str) -> tuple[str, int]:
    """What `keep_little` said, and how many arenas eight busy threads have."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", COUNT, how], env=kept | environment, capture_output=True, text=True, check=True
    )
    said, _, rest = done.stdout.partition("\n")
    return said, rest.count("<heap nr=")


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="another C library")
def test_threads_share_an_arena_unless_the_operator_says_otherwise() -> None:
    assert arenas("never asked")[1] > 2
    assert arenas("asked") == ("True", 2)
    assert arenas("asked", MALLOC_ARENA_MAX="4")[1] > 2


class Asked(Exception):
    """Told by what a process calls in place of `keep_little`."""


def test_a_coordinators_process_asks_for_it_before_it_opens_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> bool:
        raise Asked

    monkeypatch.setattr("protocol.allocator.keep_little", asked)
    monkeypatch.setattr("barnraise.cli.serve.keep_little", asked)
    lock = folder_lock(Path("nowhere"))
    wanted = Serving(invites=0, invites_to=None, trusted=False, page=None, as_json=False, traces=None, lock=lock)
    with pytest.raises(Asked):
        asyncio.run(serve(Path("nowhere"), wanted))
    with pytest.raises(Asked):
        coordinator_process(None, None)  # type: ignore[arg-type]


def test_a_workers_process_asks_for_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> bool:
        raise Asked

    monkeypatch.setattr("protocol.allocator.keep_little", asked)
    with pytest.raises(Asked):
        worker_process(None)  # type: ignore[arg-type]
    with pytest.raises(Asked):
        join("nowhere")

"""`barnraise worker join LINK` as a function: from a link to an exit code.

Decides what a signal means (leave, handing the lease back) and that the process is gone within two seconds of it, even
if the device is in the middle of a step. Exit codes: 0 the run is over or the volunteer left, 1 leases failed, 2
refused or wrongly configured. Imports torch and grpc only when it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from protocol.errors import ConfigError, RemoteError
from worker.options import WorkerOptions

if TYPE_CHECKING:
    from worker.agent import Agent
    from worker.progress import Reporter

__all__ = ["WorkerOptions", "run_worker"]

THREAD_GRACE_S = 0.4
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_worker(options: WorkerOptions) -> int:
    """Join the run behind `options.link` and work until it is over or a signal comes. Owns its process."""
    from worker.progress import make_reporter

    reporter = make_reporter(options.output)
    try:
        exit_code, thread_ended = asyncio.run(_work(options, reporter))
    except (ConfigError, RemoteError) as error:
        reporter.say("failed", str(error))
        return 2
    finally:
        reporter.close()
    if not thread_ended:
        # A step on the device cannot be interrupted, and the interpreter would wait for it or crash under it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    return exit_code


async def _work(options: WorkerOptions, reporter: Reporter) -> tuple[int, bool]:
    import torch

    from protocol.joinlink import JoinLink
    from protocol.text import human_bytes
    from worker.agent import Agent
    from worker.home import open_home
    from worker.joining import Joining
    from worker.probe import probe_machine

    link = JoinLink.parse(options.link)
    home = open_home(options.home, link.fingerprint, options.disk_bytes)
    home.lock()
    try:
        machine = probe_machine(options.device, options.memory_bytes, options.threads)
        torch.set_num_threads(machine.threads)
        memory = human_bytes(machine.memory_bytes)
        reporter.say("machine", f"{machine.device}: {machine.device_name}, {memory} offered", device=machine.device)
        if machine.notice:
            reporter.say("gpu_not_used", machine.notice)
        agent = Agent(options, machine, Joining(options, link, home, reporter), home.outbox, reporter)
        with _leaving_on_signals(agent):
            finish = await agent.run()
        reporter.say("finished", finish.reason, exit_code=finish.exit_code)
        return finish.exit_code, agent.wait_for_thread(THREAD_GRACE_S)
    finally:
        home.unlock()


class _leaving_on_signals(contextlib.AbstractContextManager[None]):  # noqa: N801  # reads as a phrase
    """While inside, SIGTERM and SIGINT ask the agent to leave; a second one ends the process at once."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._loop = asyncio.get_running_loop()
        self._asked = False

    def __enter__(self) -> None:
        for number in SIGNALS:
            # Not in the main thread, or on Windows: whoever runs us there stops us by other means.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                self._loop.add_signal_handler(number, self._on_signal, number)

    def __exit__(self, *_: object) -> None:
        for number in SIGNALS:
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                self._loop.remove_signal_handler(number)

    def _on_signal(self, number: int) -> None:
        if self._asked:
            os._exit(128 + number)
        self._asked = True
        self._agent.leave(f"{signal.Signals(number).name} received")

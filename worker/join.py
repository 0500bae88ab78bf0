"""`barnraise worker join LINK` as a function: from a link to an exit code.

Decides that a mistake in what was asked for is told before anything heavy is imported, and that the process is gone
within two seconds of a signal (worker/signals.py), even if the device is in the middle of a step. Exit codes: 0 the run
is over or the volunteer left, 1 leases failed, 2 refused or wrongly configured, 75 the device has to be opened anew by
another process, which the command starts (worker/again.py). Imports torch and grpc only when it runs.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

from protocol.errors import ConfigError, RemoteError
from protocol.terminal import outliving_terminal
from worker.lease import printable
from worker.messages import EXIT_DEVICE_LOST
from worker.options import WorkerOptions
from worker.rejoin import home_root, link_of
from worker.sentences import finished, refusal
from worker.signals import LeavingOnSignals
from worker.trouble import trouble_of

if TYPE_CHECKING:
    from protocol.joinlink import JoinLink
    from worker.agent import Agent
    from worker.home import RunHome
    from worker.machine.probe import Machine
    from worker.progress import Reporter

__all__ = ["WorkerOptions", "run_worker"]

THREAD_GRACE_S = 0.4


def run_worker(options: WorkerOptions) -> int:
    """Join the run behind `options.link` and work until it is over or a signal comes. Owns its process."""
    from worker.progress import make_reporter

    with outliving_terminal():
        reporter, link = make_reporter(options.output), None
        try:
            link = link_of(options.link, home_root(options.home))  # before imports that take seconds
            exit_code, thread_ended = asyncio.run(_work(options, link, reporter))
        except (ConfigError, RemoteError) as error:
            trouble = trouble_of(error)
            address = "" if link is None else link.address
            reporter.say("failed", refusal(trouble.cause, trouble.detail, address), detail=printable(str(error)))
            return 2
        finally:
            reporter.close()
        if not thread_ended and exit_code != EXIT_DEVICE_LOST:
            # A step on the device cannot be interrupted, and the interpreter would wait for it or crash under it.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(exit_code)
        return exit_code


def make_agent(options: WorkerOptions, machine: Machine, link: JoinLink, home: RunHome, reporter: Reporter) -> Agent:
    """An agent with its real ports: gRPC, this disk, a training thread, the system's clock."""
    from worker.agent import Agent
    from worker.joining import Joining
    from worker.sharing import Sharing
    from worker.train.measuring import LossMeasurer
    from worker.train.training import TrainingRoom

    trainer = TrainingRoom(options, machine, home.disk, home.outbox, reporter)
    joining = Joining(options, link, home, reporter)
    sharing = None
    if options.share_bytes_per_s is not None:
        sharing = Sharing(home.disk.blocks, options.share_bytes_per_s, port=options.share_port)
    return Agent(
        machine,
        joining,
        home.outbox,
        trainer,
        reporter,
        pauses=options.pauses,
        policy=options.policy,
        measurer=LossMeasurer(home.disk.blocks, machine.device),
        sharing=sharing,
    )


async def _work(options: WorkerOptions, link: JoinLink, reporter: Reporter) -> tuple[int, bool]:
    import torch

    from protocol.text import human_bytes
    from worker.home import open_home
    from worker.machine.probe import probe_machine

    home = open_home(options.home, link.fingerprint, options.disk_bytes)
    home.lock()
    try:
        machine = probe_machine(options.device, options.memory_bytes, options.threads)
        torch.set_num_threads(machine.threads)
        memory = human_bytes(machine.memory_bytes)
        reporter.say("machine", f"{machine.device}: {machine.device_name}, {memory} offered", device=machine.device)
        if machine.notice:
            reporter.say("gpu_not_used", machine.notice)
        agent = make_agent(options, machine, link, home, reporter)
        with LeavingOnSignals(agent.leave):
            finish = await agent.run()
        detail = printable(finish.reason)
        reporter.say("finished", finished(finish, link.address), exit_code=finish.exit_code, detail=detail)
        return finish.exit_code, agent.wait_for_thread(THREAD_GRACE_S)
    finally:
        home.unlock()

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
from typing import TYPE_CHECKING, Any

from protocol.errors import ConfigError, RemoteError
from protocol.terminal import outliving_terminal
from worker.lease import printable
from worker.messages import EXIT_DEVICE_LOST
from worker.options import WorkerOptions
from worker.rejoin import home_root, links_of
from worker.sentences import finished, refusal
from worker.signals import LeavingOnSignals
from worker.trouble import trouble_of

if TYPE_CHECKING:
    from peering.keeping import RecordKeeper
    from protocol.joinlink import JoinLink
    from worker import messages as m
    from worker.agent import Agent
    from worker.control import Control
    from worker.home import RunHome
    from worker.joining import Joining
    from worker.machine.probe import Machine
    from worker.progress import LiveReporter, Reporter
    from worker.rules.house import House
    from worker.sharing import Sharing
    from worker.standing import WorkerStanding

__all__ = ["WorkerOptions", "run_worker"]

THREAD_GRACE_S = 0.4


def run_worker(options: WorkerOptions) -> int:
    """Join the run behind `options.link` and work until it is over or a signal comes. Owns its process.

    Without a link, work for all runs that this machine is enrolled in, one after another: the next one's turn comes
    when a run is over.
    """
    from worker.progress import make_reporter

    with outliving_terminal():
        reporter, link, exit_code = make_reporter(options.output), None, 0
        try:
            links = links_of(options.link, home_root(options.home))  # before imports that take seconds
            for number, link in enumerate(links, start=1):
                if len(links) > 1:
                    text = f"run {number} of {len(links)} here, at {link.address}; the others wait for its end"
                    reporter.say("turn", text, run=number, runs=len(links))
                finish, thread_ended = asyncio.run(_work(options, link, reporter))
                exit_code = finish.exit_code
                if not finish.run_over:
                    break
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


def make_agent(
    options: WorkerOptions,
    machine: Machine,
    link: JoinLink,
    home: RunHome,
    reporter: Reporter,
    house: House | None = None,
) -> tuple[Agent, Joining]:
    """An agent with its real ports (gRPC, this disk, a training thread, the system's clock), and its membership.

    It works under the volunteer's rules (`house`); without them by `options.policy` alone.
    """
    from worker.agent import Agent
    from worker.finding import Finder
    from worker.joining import Joining
    from worker.p2p import WorkerNetwork
    from worker.receipts import ReceiptKeeper
    from worker.timing import Timing
    from worker.train.measuring import LossMeasurer
    from worker.train.training import TrainingRoom

    ruled: dict[str, Any] = {"policy": options.policy}
    timing = Timing()
    finder = Finder(link, home, timing)
    if options.p2p:
        finder.elsewhere = WorkerNetwork(
            home.folder,
            home,
            finder.keeper,
            through=link.through,
            listens=options.share_bytes_per_s is not None,
            port=options.p2p_port,
            tell=lambda text: reporter.say("p2p", text),
        )
    found: dict[str, Any] = {"timing": timing, "finder": finder}
    if house is None:
        trainer = TrainingRoom(options, machine, home.disk, home.outbox, reporter)
        joining = Joining(options, link, home, reporter, **found)
    else:
        disk = home.disk
        disk.ruled, disk.short = lambda: house.disk_bytes, house.short_of_disk_bytes
        trainer = TrainingRoom(options, machine, disk, home.outbox, reporter, threads=lambda: house.rules.cpu.threads)
        joining = Joining(options, link, home, reporter, counted=house.counted, licensed=house.learn_licence, **found)
        ruled = {
            "policy": house.policy,
            "circumstances": lambda: house.look(disk.make_room),
            "unwanted": house.unwanted,
        }
    agent = Agent(
        machine,
        joining,
        home.outbox,
        trainer,
        reporter,
        pauses=options.pauses,
        measurer=LossMeasurer(home.disk.blocks, machine.device),
        receipts=ReceiptKeeper(home),
        sharing=sharing_of(options, home, finder.keeper),
        **ruled,
    )
    return agent, joining


def sharing_of(options: WorkerOptions, home: RunHome, records: RecordKeeper | None = None) -> Sharing | None:
    """What other workers are given of this one's blocks; None unless the volunteer said `--share`."""
    from worker.sharing import Sharing

    if options.share_bytes_per_s is None:
        return None
    return Sharing(home.disk.blocks, options.share_bytes_per_s, port=options.share_port, records=records)


async def _work(options: WorkerOptions, link: JoinLink, reporter: Reporter) -> tuple[m.Finish, bool]:
    import torch

    from protocol.text import human_bytes
    from worker.home import open_home
    from worker.machine.probe import probe_machine
    from worker.rules.file import RULES_FILE, read_rules
    from worker.rules.house import House
    from worker.standing import LOG_FILE, WorkerStanding

    root = home_root(options.home)
    home = open_home(options.home, link.fingerprint, options.disk_bytes)
    home.lock()
    try:
        standing = WorkerStanding(reporter, home.folder / LOG_FILE)
        threads = options.threads or read_rules(root / RULES_FILE).cpu.threads or None
        machine = probe_machine(options.device, options.memory_bytes, threads)
        torch.set_num_threads(machine.threads)
        memory = human_bytes(machine.memory_bytes)
        standing.say("machine", f"{machine.device}: {machine.device_name}, {memory} offered", device=machine.device)
        if machine.notice:
            standing.say("gpu_not_used", machine.notice)
        house = House(root, gpu=machine.gpu, gpu_uuid=machine.gpu_uuid, tell=lambda text: standing.say("rules", text))
        finish, agent = await _ruled_run(options, machine, link, home, standing, reporter, house)
        detail = printable(finish.reason)
        standing.say("finished", finished(finish, link.address), exit_code=finish.exit_code, detail=detail)
        return finish, agent.wait_for_thread(THREAD_GRACE_S)
    finally:
        home.unlock()


async def _ruled_run(
    options: WorkerOptions,
    machine: Machine,
    link: JoinLink,
    home: RunHome,
    standing: WorkerStanding,
    shown: Reporter,
    house: House,
) -> tuple[m.Finish, Agent]:
    """Work under the volunteer's rules, with a live line where somebody looks, and an ear for their commands."""
    from protocol.local_socket import serve
    from worker.control import Control, control_path
    from worker.progress import LiveReporter

    agent, joining = make_agent(options, machine, link, home, standing, house)
    control = Control(agent, joining, house, standing)
    live, server = None, None
    try:
        server = await serve(control_path(home.folder), control.handle)
    except (ConfigError, OSError) as error:
        standing.say("no_commands", f"the commands pause, status and so on do not reach this worker: {error}")
    if isinstance(shown, LiveReporter):
        live = asyncio.create_task(_live_line(shown, control))
    try:
        with LeavingOnSignals(agent.leave):
            return await agent.run(), agent
    finally:
        if live is not None:
            live.cancel()
        if server is not None:
            await server.close()


async def _live_line(shown: LiveReporter, control: Control) -> None:
    while True:
        shown.stand(control.sentence())
        await asyncio.sleep(0.5)

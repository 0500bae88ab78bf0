"""What the swarm's processes do: the coordinator, a worker, the lone worker. Each function is one process's whole life.

Decides nothing about training: it calls the same entry points as the command line, on the simulation's settings.
Talks to the simulation's own process through a pipe, in small dictionaries.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.processes.churn import Dropout, kill_step, trusted_workers
from simulator.processes.options import SimulationOptions
from simulator.processes.vanishing import Vanishing, note_vanishing, sequences_ending_at

if TYPE_CHECKING:
    from coordinator.edge.server import CoordinatorServer
    from simulator.adversaries.attack import Honest

STATUS_EVERY_S = 0.3
STOP_GRACE_S = 1.0
EARLIER_KEPT = 3
"""Results that a liar's process remembers."""

Message = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """Everything that a worker's process needs to know."""

    index: int
    name: str
    link: str
    home: Path
    vanishings: Path
    """Where the process notes, just before it dies, that it was meant to."""
    max_columns: int | None
    attack: str | None
    attack_strength: float | None
    attack_seed: int
    vocab_size: int
    dropouts: tuple[Dropout, ...]
    """Those still to come: at most one a round."""


def coordinator_process(options: SimulationOptions, pipe: Connection) -> None:
    """Make the run, serve it, tell its status until told to stop."""
    import torch

    from protocol.allocator import keep_little
    from protocol.collection import collect_rarely

    keep_little()
    torch.set_num_threads(1)
    collect_rarely()
    try:
        asyncio.run(_serve(options, pipe))
    except Exception as error:
        _tell_failure(pipe, error)


async def _serve(options: SimulationOptions, pipe: Connection) -> None:
    from coordinator.edge.server import CoordinatorServer
    from coordinator.page.address import PageAddress
    from coordinator.run.folder import init_run
    from simulator.processes.setup import run_settings
    from worker.train.replay import replay_lease

    # an experiment may well be to see what an open run is worth that nobody vouches for
    run = await asyncio.to_thread(
        init_run, options.work / "run", run_settings(options), accept_unaudited=True, accept_lossy=True
    )
    page = None if options.http is None else PageAddress.parse(options.http)
    server = CoordinatorServer(run, replay=replay_lease(run.layout()), page=page)
    await server.start()
    try:
        founders = trusted_workers(seed=options.seed, workers=options.workers, count=options.trusted)
        links = [(await server.create_invites(trusted=one in founders))[0] for one in range(options.workers)]
        pipe.send({"kind": "ready", "links": links, "vocab_size": run.dataset().vocab_size, "pid": os.getpid()})
        await _tell(server, pipe)
    except (EOFError, BrokenPipeError):
        return  # the simulation is gone, and nobody is left to tell
    finally:
        await server.stop(STOP_GRACE_S)


async def _tell(server: CoordinatorServer, pipe: Connection) -> None:
    """Send the status again and again, until a message comes; then once more."""
    finished = asyncio.ensure_future(server.finished())
    told_finished = False
    while not pipe.poll():
        await asyncio.wait({finished}, timeout=0.0 if told_finished else STATUS_EVERY_S)
        if told_finished:
            await asyncio.sleep(STATUS_EVERY_S)
        if finished.done():
            finished.result()  # raises what broke the pump
        over, told_finished = finished.done() and not told_finished, finished.done()
        pipe.send({"kind": "finished" if over else "status", "status": await server.status()})
    finished.cancel()
    pipe.send({"kind": "status", "status": await server.status()})


def worker_process(spec: WorkerSpec) -> None:
    """One volunteer: the real worker, with the two seams that a simulation has."""
    import torch

    from protocol.allocator import keep_little
    from worker.join import WorkerOptions, run_worker

    keep_little()
    torch.set_num_threads(1)
    hooks = WorkerHooks(spec)
    options = WorkerOptions(
        link=spec.link,
        home=spec.home,
        name=spec.name,
        device="cpu",
        max_columns=spec.max_columns,
        threads=1,
        output="plain",
        measure_speed=False,
        max_backoff_s=2.0,
        trainer_hook=hooks.on_result,
        batch_hook=hooks.on_batch,
    )
    sys.exit(run_worker(options))


class WorkerHooks:
    """What this worker does besides training: lie, or vanish."""

    def __init__(self, spec: WorkerSpec) -> None:
        from simulator.adversaries.adversary import Adversary

        self._spec = spec
        self._dropouts = {drop.round: drop for drop in spec.dropouts}
        self._earlier: tuple[Honest, ...] = ()
        self._adversary = (
            None
            if spec.attack is None
            else Adversary.of(
                attack=spec.attack, strength=spec.attack_strength, seed=spec.attack_seed, vocab_size=spec.vocab_size
            )
        )

    def on_batch(self, lease: Any, tokens_NL: Any) -> Any:
        """The sequences that are trained on; in a round of this worker's dropout, they end with its life."""
        if self._adversary is not None:
            tokens_NL = self._adversary.on_batch(lease.lease_id, lease.round, tokens_NL)
        drop = self._dropouts.get(lease.round)
        if drop is None:
            return tokens_NL
        step = kill_step(drop, lease.inner_steps)

        def vanish() -> None:
            note_vanishing(
                self._spec.vanishings,
                Vanishing(wall_s=time.time(), round=lease.round, step=step, inner_steps=lease.inner_steps),
            )
            os.kill(os.getpid(), signal.SIGKILL)

        return sequences_ending_at(tokens_NL, (step - 1) * lease.batch_sequences, vanish)

    def on_result(self, lease: Any, result: Any) -> Any:
        """The result that is submitted. A liar in a process of its own sees its own lease alone: a group of one."""
        if self._adversary is None:
            return result
        import dataclasses

        from simulator.adversaries.attack import Colluders, Honest

        own = Honest(
            lease_id=lease.lease_id, round=lease.round, columns=lease.columns, pseudo_gradient=result.pseudo_gradient
        )
        view = Colluders(own=own, group=(own,), earlier=self._earlier)
        self._earlier = (*self._earlier, own)[-EARLIER_KEPT:]
        forged = self._adversary.on_result(view)
        return dataclasses.replace(result, pseudo_gradient=forged)


def lone_process(run_folder: Path, pipe: Connection) -> None:
    """One honest worker alone, after the swarm; one torch thread, as each of the swarm's workers has."""
    import torch

    from barnraise.pretrain.central import train_lone

    torch.set_num_threads(1)

    started_s = time.monotonic()
    try:
        loss = train_lone(run_folder, on_progress=lambda done, all_steps: pipe.send(_progress(done, all_steps)))
        pipe.send({"kind": "lone", "loss": loss, "wall_s": time.monotonic() - started_s})
    except Exception as error:
        _tell_failure(pipe, error)


def _tell_failure(pipe: Connection, error: Exception) -> None:
    """The whole story into the log, one sentence to the simulation."""
    from protocol.errors import ConfigError

    traceback.print_exc()
    sys.stderr.flush()
    correctable = isinstance(error, ConfigError)
    why = str(error) if correctable else f"{type(error).__name__}: {error}"
    pipe.send({"kind": "failed", "why": why, "correctable": correctable})


def _progress(done: int, all_steps: int) -> Message:
    return {"kind": "progress", "done": done, "all": all_steps}

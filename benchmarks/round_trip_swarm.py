"""A real run whose workers train nothing: the processes of `benchmarks.round_trip`'s own rows.

Decides nothing that it measures: the coordinator is the real server on a real run folder, each worker the real agent
with its session, signed calls, fetcher, block cache and outbox. In place of training, a worker changes a few bytes of a
pseudo-gradient that it made beforehand, so that every submission has a digest of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.sized_runs import invited, sized_run, submission_bytes, submission_layout
from coordinator.run.folder import RunFolder
from protocol.codecs import codec_named
from protocol.ids import digest_of
from protocol.tensors import encode_tensors
from simulator.processes.launcher import ProcessGroup

ENGINE: Mapping[str, Any] = {
    "gather_s": 0.0,
    "validate_every": 0,
    "checkpoint_every": 0,
    "max_rounds": 10_000,
    "audits": {"budget": 0.0},
    "region": {"margin": 1e6},
    "inner": {"inner_steps": 2, "batch_sequences": 2, "warmup_steps": 0},
}
WHOLE: Mapping[str, Any] = {"codec": "fp32", "frozen_codec": "fp32", "frozen_every": 1}
"""Every block of every version comes down whole: as many bytes as go up."""
AS_SET: Mapping[str, Any] = {}
"""As a run has it that sets nothing: what comes down are steps in 4 bits a value."""
HARMLESS: Mapping[str, Any] = {"min_heldout_gain": -1.0, "min_heldout_gain_share": 0.0}
"""Everything is measured, and nothing refused: what comes is noise, which lowers no loss."""
PATIENCE_S = 900.0
FEW = 1e-5
"""Standard deviation of a pseudo-gradient: it raises none, either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How long rounds took, from one version to the next, and the coordinator's processor seconds in one."""

    payload_bytes: int
    round_s: float
    slowest_s: float
    cpu_s: float


def play(
    folder: Path,
    workers: int,
    payload_bytes: int,
    rounds: int,
    *,
    screening: bool,
    codec: str,
    down: Mapping[str, Any] = WHOLE,
) -> Rounds:
    """So many rounds and one more, which is not counted: in it everybody arrives."""
    engine = {**ENGINE, "replicas": workers, "quorum": workers, "min_workers": workers, "down": dict(down)}
    run = sized_run(folder / "run", payload_bytes, {**engine, "screening": {**HARMLESS, "enabled": screening}}, codec)
    group = ProcessGroup()
    try:
        ours, theirs = group.pipe()
        group.start("coordinator", folder / "coordinator.log", serve, run.root, rounds + 1, theirs)
        port = ours.recv()
        for number in range(workers):
            home = folder / f"worker-{number}"
            group.start(home.name, folder / f"{home.name}.log", work, run.root, invited(run, port), home, number)
        if not ours.poll(PATIENCE_S):
            raise TimeoutError(f"{rounds} rounds took over {PATIENCE_S:g} s")
        cpu_s = ours.recv()
    except (EOFError, TimeoutError):
        print((folder / "coordinator.log").read_text(), (folder / "worker-0.log").read_text())
        raise
    finally:
        group.stop(grace_s=0.0)
    times = published_at(run)[: rounds + 1]
    took_s = [after - before for before, after in itertools.pairwise(times)]
    assert len(took_s) == rounds, took_s
    return Rounds(
        payload_bytes=submission_bytes(run),
        round_s=median(took_s),
        slowest_s=max(took_s),
        cpu_s=cpu_s / rounds,
    )


def published_at(run: RunFolder) -> list[float]:
    """When each round was aggregated and its version published, in seconds of the run's time."""
    records = [json.loads(line) for line in run.events_path.read_text().splitlines()]
    return [float(record["at_s"]) for record in records if record["name"] == "RoundAggregated"]


def serve(folder: Path, versions: int, pipe: Connection) -> None:
    """The coordinator, until so many are published; tells its port, then its processor seconds since the first."""
    import torch

    from coordinator.edge.server import CoordinatorServer

    torch.set_num_threads(1)

    async def run() -> None:
        server = CoordinatorServer(RunFolder.open(folder))
        pipe.send(await server.start())
        before_s = 0.0
        while (version := server.summary().version) < versions:  # it has no event for this
            await asyncio.sleep(0.02)
            before_s = before_s if version < 1 or before_s else time.process_time()
        pipe.send(time.process_time() - before_s)
        await asyncio.Event().wait()

    asyncio.run(run())


def work(folder: Path, link_text: str, home_folder: Path, number: int) -> None:
    """A worker, until it is killed."""
    import torch

    from protocol.joinlink import JoinLink
    from worker.agent import Agent
    from worker.home import open_home
    from worker.joining import Joining
    from worker.machine.machine import Machine
    from worker.options import WorkerOptions
    from worker.progress import make_reporter

    torch.set_num_threads(1)
    torch.manual_seed(number)
    run, link = RunFolder.open(folder), JoinLink.parse(link_text)
    options = WorkerOptions(link=link_text, home=home_folder, measure_speed=False, output="json")
    home, reporter = open_home(home_folder, link.fingerprint), make_reporter("json")
    machine = Machine(device="cpu", device_name="none", memory_bytes=64 << 30, threads=1, bf16=False)
    trainer = Untrained(run, home.outbox)

    async def joined() -> None:
        await Agent(machine, Joining(options, link, home, reporter), home.outbox, trainer, reporter).run()

    asyncio.run(joined())


class Untrained:
    """A `Trainer` (worker/ports.py) that has its pseudo-gradient already."""

    def __init__(self, run: RunFolder, outbox: Any) -> None:
        import torch

        from worker.ports import Progress

        self.progress = Progress()
        self._codec, self._outbox = run.settings().codec, outbox
        specs = submission_layout(run)
        tensors = {spec.name: torch.randn(spec.shape) * FEW for spec in specs}
        self._payload = bytearray(encode_tensors(tensors, codec_named(self._codec)))
        self._thread: threading.Thread | None = None

    def start(self, fetched: Any, done: Callable[[Any], None], failed: Callable[[Any], None]) -> None:
        """The payload into the outbox, in a thread as training is."""
        self._thread = threading.Thread(target=self._finish, args=(fetched.lease, done), daemon=True)
        self._thread.start()

    def _finish(self, lease: Any, done: Callable[[Any], None]) -> None:
        from worker.outbox import Submission

        self._payload[-2] = lease.round % 128  # of the last value's mantissa: another digest, hardly another step
        payload = bytes(self._payload)
        submission = Submission(
            lease_id=lease.lease_id,
            digest=digest_of(payload),
            payload_bytes=len(payload),
            codec=self._codec,
            inner_steps_done=lease.inner_steps,
            tokens=1,
            train_loss_first=5.0,
            train_loss_last=4.0,
            train_s=0.01,
            micro_batch=1,
        )
        self._outbox.save(submission, payload)
        done(submission)

    def stop(self) -> None:
        """It has ended before it could."""

    def rest(self) -> None:
        """Nothing is held."""

    def wake(self) -> None:
        """Nothing was given up."""

    def pace(self, share: float) -> None:
        """No rule makes it slower."""

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return True

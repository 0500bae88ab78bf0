"""The trainer's process: what it computes is what this one would, and whatever ends it costs no more than it says."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from protocol.causes import Cause
from protocol.codecs import FP32
from protocol.errors import ConfigError, DigestMismatch
from protocol.ids import TRUNK, Digest, RunId, digest_of
from protocol.lease import Lease
from protocol.manifest import BlockRef, DeltaRef
from protocol.tensors import encode_tensors
from protocol.v1 import barnraise_pb2 as pb
from tests.worker.conftest import MACHINE, small_values
from tests.worker.leases import changed_lease, lease_message, read_lease
from worker.allowance import DiskCap
from worker.apart import orders as o
from worker.apart.child import OrderTaker
from worker.apart.hands import DistantHands
from worker.apart.keeper import MOST_IN_A_ROW, ProcessKeeper, WorkerLeaves
from worker.apart.ruled import Ruled
from worker.apart.taking import LeaseTaker
from worker.apart.trainer import ApartTrainer
from worker.fetched import FetchedLease, understand_run
from worker.handiwork import HERE
from worker.home import open_home
from worker.lease import RunDescription
from worker.machine.machine import Machine
from worker.options import WorkerOptions
from worker.outbox import Submission
from worker.rules.model import VolunteerRules
from worker.steps import Way
from worker.train.job import TrainingJob
from worker.train.training import TrainingRoom
from worker.trouble import Trouble

FINGERPRINT = "ab" * 32
IDLE_BYTES = 120 << 20
"""Of an agent that has nothing to do."""


def description() -> RunDescription:
    return RunDescription(
        run_id=RunId("run"), name="run", model_json=json.dumps(small_values()), residency="frozen", codec="fp32",
        sequence_length=16, dataset_digest=Digest("0" * 64), max_block_bytes=1 << 30,
    )  # fmt: skip


class Apart:
    """A trainer's process with one run's blocks, and what is heard of it."""

    def __init__(self, folder: Path, blocks: Any, lingers_s: float = 60.0) -> None:
        self.home = open_home(folder, FINGERPRINT)
        self.digests = {}
        for block, tensors in blocks.items():
            payload = encode_tensors(tensors, FP32)
            self.digests[block] = digest_of(payload)
            self.home.disk.blocks.path(digest_of(payload)).write_bytes(payload)
        self.options = WorkerOptions(device="cpu", threads=1, keep_progress_every_s=0.0)
        self.said: list[str] = []
        self.steps: list[int] = []
        self.on_step: Callable[[int], None] = lambda _: None
        self.keeper = ProcessKeeper(self.options, self.home, self, lingers_s=lingers_s)
        self.hands = DistantHands(self.keeper, self.options, ruled=Ruled(memory_bytes={"cpu": 5 << 30}.get))
        self.trainer = ApartTrainer(self.keeper, lambda: self.hands.machine, self.home.outbox, self, ruled=Ruled())
        self.hands._machine = MACHINE

    def say(self, event: str, text: str, **fields: object) -> None:
        self.said.append(event)

    def step(self, done: int, total: int, loss: float | None, tokens_per_s: float) -> None:
        self.steps.append(done)
        self.on_step(done)

    def close(self) -> None: ...

    def fetched(self, lease: Lease, sequences: Any) -> FetchedLease:
        run = understand_run(description())
        return FetchedLease(lease=lease, run=run, digests=self.digests, sequences=sequences)

    def train(self, lease: Lease, sequences: Any) -> Submission | Trouble | None:
        """What comes of it."""
        ended, came = Event(), list[Submission | Trouble]()

        def end(outcome: Submission | Trouble) -> None:
            came.append(outcome)
            ended.set()

        self.trainer.start(self.fetched(lease, sequences), end, end)
        ended.wait(240.0)
        return came[0] if came else None

    def pid(self) -> int:
        pid = self.keeper.pid
        assert pid is not None
        return pid


@pytest.fixture
def apart(tmp_path: Path, blocks_of: Any, frozen_layout: Any) -> Iterator[Apart]:
    made = Apart(tmp_path, blocks_of(frozen_layout))
    yield made
    made.trainer.join(10.0)


def lasting(lease: Lease, sequences: Any) -> tuple[Lease, Any]:
    """A lease of so many steps that something can happen in its middle."""
    many = np.concatenate([sequences] * 20)
    return changed_lease(lease, inner_steps=100, data_count=400), many  # type: ignore[arg-type]


def trained_here(apart: Apart, lease: Lease, sequences: Any, folder: Path) -> str:
    """The digest of what this process makes of the lease."""
    home, ended = open_home(folder, FINGERPRINT), list[str]()
    for digest in apart.digests.values():
        home.disk.blocks.path(digest).write_bytes(apart.home.disk.blocks.path(digest).read_bytes())
    room = TrainingRoom(apart.options, MACHINE, home.disk, home.outbox, apart)
    fetched = apart.fetched(lease, sequences)
    room.start(fetched, lambda submission: ended.append(submission.digest), lambda trouble: ended.append(str(trouble)))
    assert room.join(240.0)
    return ended[0]


def test_a_killed_process_costs_what_was_not_saved_and_the_bits_are_those_of_this_process(
    apart: Apart, make_lease: Any, sequences: Any, tmp_path: Path
) -> None:
    lease, many = lasting(make_lease(), sequences)
    wanted = trained_here(apart, lease, many, tmp_path / "here")
    apart.steps.clear()

    def kill(done: int) -> None:
        if done > 1 and apart.keeper.pid is not None:
            apart.on_step = lambda _: None
            os.kill(apart.pid(), signal.SIGKILL)

    apart.on_step = kill
    apart.trainer.pace(0.8)  # a rest now and then changes no bit either
    made = apart.train(lease, many)
    assert isinstance(made, Submission)
    assert made.digest == wanted, "the same bits, though a process was killed in its middle"
    assert apart.said.count("trainer_gone") == 1
    assert "taken_up" in apart.said, "it went on, and did not begin again"
    assert apart.home.outbox.load(lease.lease_id) == made
    _orders(apart, lease)
    _pause(apart, lease, many)


def _orders(apart: Apart, lease: Lease) -> None:
    """In the process that is there: starting one takes seconds."""
    run, hands, cap = understand_run(description()), apart.hands.handiwork, DiskCap()
    assert hands.understand(description()) == run, "the layout comes whole through the pipe"
    assert hands.plan(run, MACHINE, 2, cap) == HERE.plan(run, MACHINE, 2, cap)
    asked = run, (0, 2), lease.trunk, "int4"
    assert hands.submission_bytes(*asked) == HERE.submission_bytes(*asked)
    with pytest.raises(ConfigError, match="too little: one lease of this run needs"):
        hands.plan(run, MACHINE, 2, DiskCap(most_bytes=1))
    probed = apart.hands.probe()
    assert (probed.kind, probed.memory_cap_bytes) == ("cpu", 5 << 30), "a rule caps what is offered"
    apart.hands._machine = MACHINE
    _steps_that_lead_elsewhere(apart, run)


def _pause(apart: Apart, lease: Lease, many: Any) -> None:
    process, began = psutil.Process(apart.pid()), Event()
    apart.on_step = lambda _: began.set()
    apart.trainer.start(apart.fetched(changed_lease(lease, lease_id="r2.1"), many), print, print)  # type: ignore[arg-type]
    assert began.wait(240.0)
    apart.trainer.rest()
    assert process.is_running(), "what may be finished is let finish"
    started_s = time.monotonic()
    apart.trainer.stop()
    apart.trainer.rest()
    process.wait(2.0)
    assert time.monotonic() - started_s < 2.0
    waits = Thread(target=apart.keeper.ready, daemon=True)
    waits.start()
    waits.join(0.2)
    assert waits.is_alive()
    assert apart.keeper.pid is None, "nothing is started in a pause"
    apart.trainer.wake()
    waits.join(10.0)
    assert apart.keeper.pid is not None, "what waited for its end goes on"


def _steps_that_lead_elsewhere(apart: Apart, run: Any) -> None:
    base = apart.digests[TRUNK]
    size = apart.home.disk.blocks.path(base).stat().st_size
    step = DeltaRef(base=base, digest=base, payload_bytes=size, codec="fp32")  # the block, added to itself
    way = Way(block=TRUNK, ref=BlockRef(digest=Digest("1" * 64), payload_bytes=size), steps=(step,))
    with pytest.raises(DigestMismatch):
        apart.hands.handiwork.take_steps(way, run, apart.home.disk.blocks)
    assert not apart.home.disk.blocks.is_here(Digest("1" * 64))


class _Dead:
    """A process that is gone as soon as it is started."""

    def __init__(self, log: Path, on_word: Any, on_end: Any) -> None:
        del log, on_word
        self.is_gone, self.was_ended, self.trouble, self.was_killed, self.pid = False, False, None, True, 1
        self._on_end = on_end

    def tell(self, order: Any) -> None:
        if getattr(order, "kind", "") != "begin":
            self.is_gone = True
            self._on_end(self)

    def end(self) -> None: ...
    def wait(self, _: float) -> bool:
        return True

    def last_words(self) -> str:
        return "nothing"


def test_trouble_that_stays_is_told_and_leaving_waits_for_nothing(
    apart: Apart, make_lease: Any, sequences: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.apart.keeper.TrainerProcess", _Dead)
    outcome = apart.train(make_lease(), sequences)
    assert isinstance(outcome, Trouble)
    assert (outcome.cause, outcome.device_lost) == (Cause.OUT_OF_MEMORY, False)
    assert apart.said == ["trainer_gone"] * (MOST_IN_A_ROW - 1)
    apart.trainer.rest()
    failures: list[Exception] = []

    def ask() -> None:
        try:
            apart.hands.probe()
        except WorkerLeaves as error:
            failures.append(error)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    assert apart.trainer.join(1.0)
    thread.join(5.0)
    assert failures, "whoever waits for a pause's end does not keep a worker from leaving"


def test_what_nobody_expected_is_told_as_what_it_is(
    apart: Apart, make_lease: Any, sequences: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[Exception] = [RuntimeError("a bug"), OSError(errno.ENOSPC, "full")]

    def fail() -> None:
        raise failures.pop(0)

    monkeypatch.setattr(apart.keeper, "ready", fail)
    for cause in (Cause.TRAINING_FAILED, Cause.LOCAL_STORAGE):
        outcome = apart.train(make_lease(), sequences)
        assert isinstance(outcome, Trouble)
        assert outcome.cause == cause


class TakenHere:
    """What the trainer's process does with leases, in this one, and what it says."""

    def __init__(self, folder: Path, make_lease: Any, sequences: Any) -> None:
        begun = o.Begin(folder=str(folder), keep_progress_every_s=0.0, progress_bytes_a_day=None, disk_pause_s=1.0)
        self.words: queue.Queue[Any] = queue.Queue()
        pipe: Any = SimpleNamespace(send=self.words.put)
        self.taker = LeaseTaker(begun, pipe, lambda *_: True)
        self._lease, self._file = make_lease(), folder / "sequences.npy"
        np.save(self._file, sequences)

    def begin(self, number: int, **changed: Any) -> None:
        order = o.TrainLease(
            number=number, description=description(), machine=MACHINE, lease=self._lease, digests={},
            sequences=str(self._file),
        )  # fmt: skip
        self.taker.take(dataclasses.replace(order, **changed))


def test_a_lease_that_cannot_even_begin_ends_itself_and_not_the_process(
    tmp_path: Path, make_lease: Any, sequences: Any
) -> None:
    here = TakenHere(tmp_path, make_lease, sequences)
    here.begin(1, sequences=str(tmp_path / "nowhere"))
    here.begin(2, description=dataclasses.replace(description(), model_json="[]"))
    for number in (1, 2):
        word = here.words.get(timeout=20.0)
        assert isinstance(word, o.LeaseNotTrained)
        assert (word.number, word.cause) == (number, Cause.TRAINING_FAILED)


def test_a_lease_on_a_machine_that_has_changed_waits_for_the_one_before(
    tmp_path: Path, make_lease: Any, sequences: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a rule is changed: two leases never train at once, and none's steps are told as another's."""
    begun, go_on = queue.Queue[Machine](), Event()

    def train(room: TrainingRoom, job: TrainingJob) -> None:
        step = job.stepping()
        begun.put(room._machine)
        assert go_on.wait(20.0)
        step(1, 2.0)
        raise RuntimeError("this is as far as it has to come")

    monkeypatch.setattr(TrainingRoom, "_train", train)
    here, smaller = TakenHere(tmp_path, make_lease, sequences), dataclasses.replace(MACHINE, memory_bytes=1 << 30)
    here.begin(1)
    assert begun.get(timeout=20.0) == MACHINE
    here.taker.take(o.StopLease(number=1))
    here.begin(2, machine=smaller)
    with pytest.raises(queue.Empty):
        begun.get(timeout=0.1)
    go_on.set()
    assert begun.get(timeout=20.0) == smaller
    words = [here.words.get(timeout=20.0) for _ in range(3)]
    assert [(type(word), word.number) for word in words] == [
        (o.LeaseStepped, 1), (o.LeaseStepped, 2), (o.LeaseNotTrained, 2),
    ]  # fmt: skip


PARENT = """
import sys, time
from pathlib import Path
from worker.apart.process import TrainerProcess
from worker.apart.orders import Begin
process = TrainerProcess(Path(sys.argv[1]), print, print)
process.tell(Begin(folder="nowhere", keep_progress_every_s=1.0, progress_bytes_a_day=None, disk_pause_s=1.0))
print(process.pid, flush=True)
time.sleep(600)
"""


def test_a_killed_agent_leaves_no_process_behind(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "log")], stdout=subprocess.PIPE) as agent:
        try:
            assert agent.stdout is not None
            child = psutil.Process(int(agent.stdout.readline()))
        finally:
            agent.kill()
        child.wait(5.0)  # raises where it is still there


AGENT = """
import sys
import worker.agent, worker.apart.trainer, worker.apart.hands, worker.client, worker.control, worker.join
import worker.joining, worker.receipts, worker.rules.house, worker.sharing, worker.swarm, worker.standing
import protocol.local_socket, rich.progress
import psutil
heavy = {"torch", "transformers", "safetensors"} & set(sys.modules)
print(psutil.Process().memory_full_info().pss, *heavy)
"""


def test_nothing_that_an_agent_imports_loads_torch_and_all_of_it_is_small() -> None:
    said = subprocess.run([sys.executable, "-c", AGENT], capture_output=True, check=True, text=True).stdout.split()
    assert said[1:] == []
    assert int(said[0]) < IDLE_BYTES


def test_a_gpus_memory_and_threads_follow_the_rules_of_the_moment() -> None:
    gpu = dataclasses.replace(MACHINE, device="cuda:0", memory_bytes=9 << 30)
    rules = VolunteerRules.checked({"gpu": {"memory": "4GB"}, "cpu": {"threads": 3, "memory": "1GB"}}, "")
    ruled = Ruled(threads=lambda: rules.cpu.threads, memory_bytes=rules.memory_bytes)
    now = ruled.of_now(gpu)
    assert (now.memory_bytes, now.memory_cap_bytes, now.threads) == (4 << 30, 4 << 30, 3)
    capped = ruled.of_now(dataclasses.replace(gpu, memory_cap_bytes=2 << 30, memory_bytes=2 << 30))
    assert capped.memory_cap_bytes == 2 << 30, "of two caps the smaller counts"
    assert ruled.of_now(MACHINE).memory_bytes == MACHINE.memory_bytes, "a cap on processes is the probe's"
    assert Ruled().of_now(gpu) == gpu


def test_every_lease_goes_through_the_pipe_as_it_is() -> None:
    lease = read_lease(lease_message(residuals=["0f" * 32, "", "1f" * 32], frozen=pb.FrozenColumns(version=0)))
    order = o.TrainLease(
        number=1, description=description(), machine=MACHINE, lease=lease, digests={TRUNK: Digest("0" * 64)},
        sequences="file",
    )  # fmt: skip
    assert o.ORDER.validate_python(json.loads(json.dumps(o.ORDER.dump_python(order, mode="json")))) == order


def test_a_model_kept_for_the_next_lease_goes_where_losses_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe: Any = SimpleNamespace(send=lambda _word: None)
    taker, rested = OrderTaker(pipe), []
    taker._training = SimpleNamespace(rest=lambda: rested.append(True))
    monkeypatch.setattr(taker, "_answer", lambda _order: None)
    taker.take(object.__new__(o.Probe))
    assert not rested
    taker.take(object.__new__(o.MeasureLosses))
    assert rested == [True]

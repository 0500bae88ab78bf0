"""The training thread: from fetched blocks to a submission on disk, while the event loop goes on talking.

Decides the order: build, train, subtract, encode, store. One lease at a time: a new one waits until the stopped one has
left its last micro-step. The shard of the last lease is kept and loaded anew while the columns stay the same.
Touches the block cache (reading), the lease's progress and the outbox (writing) and the device.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence

import torch

from moe.layout import block_tensor_specs, submission_specs
from moe.rungs import Schedule, told
from moe.shard import ShardModel, build_shard
from moe.stand_ins import StandIns
from protocol.allocator import give_back_small
from protocol.arithmetic import UNKNOWN_ARITHMETIC
from protocol.codecs import FP32, codec_named
from protocol.errors import StorageTrouble
from protocol.specs import TensorSpec
from protocol.storage import is_full
from protocol.submission import Blocks
from protocol.tensor_headers import payload_size
from protocol.text import human_bytes
from worker.fetched import FetchedLease
from worker.machine.machine import Machine
from worker.machine.probe import hold_to_cap, load_of, schedule_that_fits
from worker.options import WorkerOptions
from worker.outbox import Outbox, Submission
from worker.ports import Progress, WorkDisk
from worker.progress import Reporter
from worker.train.daily_writes import DailyWrites
from worker.train.fitting import Fitting
from worker.train.freeing import drop_shard
from worker.train.job import TrainingJob
from worker.train.lease_state import LeaseKeeper, computation_of
from worker.train.mapped import mapped_block
from worker.train.residuals import write_submission
from worker.train.rhythm import Rhythm
from worker.train.trainer import LeaseResult, TrainingStopped, moved, pseudo_gradient_of, train_shard
from worker.trouble import Trouble, training_trouble_of

Done = Callable[[Submission], None]
Failed = Callable[[Trouble], None]


class TrainingRoom:
    """Owns the device. `start` and `stop` return at once; results come through callbacks, from the thread."""

    def __init__(
        self,
        options: WorkerOptions,
        machine: Machine,
        disk: WorkDisk,
        outbox: Outbox,
        reporter: Reporter,
        *,
        threads: Callable[[], int] = lambda: 0,
        make_way: Callable[[], None] = lambda: None,
    ) -> None:
        """`threads`: what the volunteer rules at the moment; 0: the machine's. `make_way` is called before anything is
        built: what else holds a model lets it go."""
        self._options = options
        self._machine, self._usual, self._threads = machine, machine.threads, threads
        self._make_way = make_way
        self._lock = threading.Lock()
        """Held while it is settled who gives memory back: the thread that stops, or whoever wants it back."""
        self._disk = disk
        self._outbox = outbox
        self._reporter = reporter
        self._job: TrainingJob | None = None
        self._shard: ShardModel | None = None
        self._writes = DailyWrites(options.progress_bytes_a_day)
        self._fitting = Fitting()
        self._told: tuple[Schedule, int] | None = None
        self._rhythm = Rhythm(self._settle)

    @property
    def progress(self) -> Progress:
        """Of the present or last lease."""
        return self._job.progress if self._job else Progress()

    def start(
        self,
        fetched: FetchedLease,
        done: Done,
        failed: Failed,
        machine: Machine | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        """Train `fetched` in a thread of its own. A stopped job calls neither callback. `machine`: on which it is, and
        what follows; None: as before. `reporter`: who hears of its steps; None: whoever hears of the rest."""
        before = self._job
        job = TrainingJob(fetched, reporter or self._reporter)

        def work() -> None:
            if before is not None and before.thread is not None:
                before.thread.join()
                if before.stop.is_set():  # in its last moment it may have stored what nobody waits for
                    self._outbox.drop(before.fetched.lease.lease_id)
            try:
                if machine is not None:
                    self._move_to(machine)
                submission = self._train(job)
            except TrainingStopped:
                with self._lock:
                    job.has_stopped = True
                    self._give_back(job)
                return
            except Exception as error:
                self._drop()  # nobody knows what is in it now, and its memory may be what was missing
                # Whatever it was (torch reports every failure of a device as RuntimeError), the lease is lost; the
                # worker is not, and an event loop that waits for a dead thread would wait for ever.
                if not job.stop.is_set():
                    failed(training_trouble_of(error))
                return
            if not job.stop.is_set():
                done(submission)

        job.thread = threading.Thread(target=work, name="training", daemon=True)
        self._job = job
        job.thread.start()

    def stop(self) -> None:
        """Ask the present job to stop at the end of its micro-step."""
        if self._job is not None:
            self._job.stop.set()

    def rest(self) -> None:
        """Nothing is to be trained for a while: the model goes, and with it what it takes of the GPU. What CUDA itself
        takes there stays until the process ends, which is why it may be one of its own (worker/apart)."""
        with self._lock:
            job = self._job
            if job is None:
                return
            has_ended = job.has_stopped or job.thread is None or not job.thread.is_alive()
            job.rests = has_ended or job.stop.is_set()  # what is to be finished is let finish
            if has_ended:
                self._give_back(job)

    def wake(self) -> None:
        """Nothing is to be done: the next lease builds what it needs."""

    def pace(self, share: float) -> None:
        """Rest for the rest of the time."""
        self._rhythm.share = share

    def _settle(self) -> None:
        if self._machine.kind == "cuda":
            torch.cuda.synchronize(self._machine.device)

    def _give_back(self, job: TrainingJob) -> None:
        if not job.rests or self._shard is None:
            return
        self._drop()

    def _drop(self) -> None:
        shard, self._shard = self._shard, None
        drop_shard(shard, self._machine.device)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread; whether it has ended."""
        thread = self._job.thread if self._job else None
        if thread is None:
            return True
        thread.join(timeout_s)
        return not thread.is_alive()

    def _move_to(self, machine: Machine) -> None:
        """What was built for another one, or for other limits, goes."""
        if dataclasses.replace(machine, threads=self._machine.threads) != self._machine:
            self._drop()
            self._fitting = Fitting()
        self._machine, self._usual = machine, machine.threads
        hold_to_cap(machine)

    def _train(self, job: TrainingJob) -> Submission:
        lease, run = job.fetched.lease, job.fetched.run
        self._machine = dataclasses.replace(self._machine, threads=self._threads() or self._usual)
        torch.set_num_threads(self._machine.threads)
        start = {
            block: mapped_block(
                self._disk.blocks.path(digest),
                block_tensor_specs(run.layout, block),
                codec_named(lease.codec_of(block)),
            )
            for block, digest in job.fetched.digests.items()
        }
        sequences_NL = job.fetched.sequences
        if self._options.batch_hook is not None:
            sequences_NL = self._options.batch_hook(lease, sequences_NL)
        length = run.description.sequence_length
        schedule = schedule_that_fits(
            run.layout, len(lease.columns), self._machine, lease.batch_sequences, length, lease.recipe, lease.codec
        )
        self._tell(schedule, job)
        self._make_way()
        kept, second = lease.recipe.frozen_dtype, self._machine.second
        shard = self._loaded_shard(job, start, StandIns(dtype=kept, place=schedule.place, second=second))
        shard.recompute(on=schedule.recomputed)
        give_back_small(on=schedule.given_back)
        self._rhythm.begin()
        metrics = train_shard(
            shard,
            lease,
            sequences_NL,
            device=self._machine.device,
            micro_batch=self._fitting.at_most(lease, schedule),
            by_layers=shard.layerwise(on_host=schedule.inputs_on_host) if schedule.by_layers else None,
            on_step=job.stepping(),
            should_stop=lambda: self._rhythm.rest(job.stop),
            keeper=self._keeper(job),
            restore=lambda: shard.load(start),
        )
        self._fitting.note(lease, schedule, metrics.micro_batch)
        shard.let_go()
        if self._options.trainer_hook is None:
            return self._keep(job, LeaseResult(pseudo_gradient=moved(start, shard), metrics=metrics))
        result = LeaseResult(pseudo_gradient=pseudo_gradient_of(start, shard), metrics=metrics)
        return self._keep(job, self._options.trainer_hook(lease, result))

    def _tell(self, schedule: Schedule, job: TrainingJob) -> None:
        """How leases are trained here and what that is planned to take, once and when it changes."""
        lease, run = job.fetched.lease, job.fetched.run
        load = load_of(
            run.layout, self._machine, run.description.sequence_length, recipe=lease.recipe, codec=lease.codec
        )
        needed_bytes = load.needed(len(lease.columns), schedule).device
        if (schedule, needed_bytes) != self._told:
            how = "".join(f", {words}" for words in told(schedule))
            text = f"{schedule.micro_batch} sequences at once{how}: {human_bytes(needed_bytes)} planned"
            self._reporter.say("scheduled", text, needed_bytes=needed_bytes, **schedule._asdict())
        self._told = schedule, needed_bytes

    def _loaded_shard(self, job: TrainingJob, start: Blocks, stand_ins: StandIns) -> ShardModel:
        lease, run = job.fetched.lease, job.fetched.run
        masters, trunk = lease.recipe.masters, lease.trunk
        if self._shard is not None and self._shard.serves(lease.columns, masters, stand_ins, trunk):
            self._shard.load(start)
        else:
            self._drop()  # before the new one is built: both would not fit
            self._shard = build_shard(
                run.layout,
                lease.columns,
                start,
                device=self._machine.device,
                compute_dtype=self._machine.compute_dtype,
                seed=lease.seed,
                masters=lease.recipe.masters,
                experts=self._machine.experts,
                stand_ins=stand_ins,
                trunk=trunk,
            )
        return self._shard

    def _keeper(self, job: TrainingJob) -> LeaseKeeper:
        lease, disk = job.fetched.lease, self._disk
        submission_bytes = payload_size(_specs_of(job), codec_named(lease.codec))

        def told(reason: str) -> None:
            self._reporter.say("progress_not_kept", reason, reason=reason)

        return LeaseKeeper(
            disk.progress,
            computation_of(lease, job.fetched.digests, self._machine.arithmetic),
            every_s=self._options.keep_progress_every_s,
            told=told,
            room_for=lambda state_bytes: disk.has_room_for_progress(state_bytes, submission_bytes),
            give_way=disk.give_way,
            writes=self._writes,
            told_rarer=lambda sentence: self._reporter.say("progress_rarer", sentence),
        )

    def _keep(self, job: TrainingJob, result: LeaseResult) -> Submission:
        """Store the finished work; a disk that takes no writes only makes it wait, for as long as the lease lives."""
        paused, specs, codec = False, _specs_of(job), codec_named(job.fetched.lease.codec)
        work_bytes = payload_size(specs, codec) + (2 * payload_size(specs, FP32) if codec.has_state else 0)
        self._disk.make_room(work_bytes)
        while True:
            try:
                submission = self._stored(job, result, specs)
            except StorageTrouble as error:
                if is_full(error) and self._gave_way(work_bytes):
                    continue
                if not paused:
                    self._reporter.say("paused", f"paused: {error}", reason=str(error))
                paused = True
                if job.stop.wait(self._options.pauses.disk_s):
                    raise TrainingStopped("stopped while it waited for room on the disk") from error
                continue
            if paused:
                self._reporter.say("unpaused", "the disk takes writes again; going on")
            self._disk.progress.clear()
            return submission

    def _stored(self, job: TrainingJob, result: LeaseResult, specs: Sequence[TensorSpec]) -> Submission:
        """Written as it is encoded, a tensor at a time: all of it is never in memory."""
        lease, metrics = job.fetched.lease, result.metrics
        made = write_submission(lease, result.pseudo_gradient, specs, self._outbox)
        submission = Submission(
            lease_id=lease.lease_id,
            digest=made.digest,
            payload_bytes=made.payload_bytes,
            codec=lease.codec,
            residuals_in=made.began,
            residuals_out=made.left,
            residuals_back=made.back,
            inner_steps_done=metrics.inner_steps_done,
            tokens=metrics.tokens,
            train_loss_first=metrics.loss_first,
            train_loss_last=metrics.loss_last,
            train_s=metrics.train_s,
            micro_batch=metrics.micro_batch,
            arithmetic=UNKNOWN_ARITHMETIC if metrics.recut else self._machine.arithmetic,
        )
        if job.stop.is_set():
            raise TrainingStopped("stopped before its submission was stored")
        self._outbox.record(submission)
        return submission

    def _gave_way(self, work_bytes: int) -> bool:
        """Whether something could be deleted for finished work: old blocks, then the progress that led to it."""
        if self._disk.give_way():
            return True
        # Only where that surely makes room: a kill while work waits for the disk should cost no more than it did.
        if (kept_bytes := self._disk.progress.used_bytes) < work_bytes or not kept_bytes:
            return False
        self._disk.progress.clear()
        return True


def _specs_of(job: TrainingJob) -> list[TensorSpec]:
    """Of what is sent for it."""
    lease = job.fetched.lease
    return submission_specs(job.fetched.run.layout, lease.columns, lease.trunk)

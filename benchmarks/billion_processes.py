"""The processes of `benchmarks.billion`: who makes the run and its fixed model, the coordinator, and the workers.

Decides the model's shape, what a worker sends (half of the way to the fixed model, and noise), and that one worker
makes it at a time. Touches the folder that it is given. No process holds two models: the fixed one is read tensor by
tensor.
"""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.sized_runs import layout_of
from coordinator.run.folder import RunFolder
from protocol.codecs import BF16, FP32, codec_named
from protocol.ids import BlockId, digest_of

if TYPE_CHECKING:
    from torch import Tensor

    from worker.fetched import FetchedLease
    from worker.outbox import Outbox

CODEC = "int4"
WIDTH_RATE, MOST_RATE = 0.25, 1e-3
"""What a step of the gradient's sign moves each weight by, times the hidden size, and at most: it moves what a matrix
makes by as much as it is wide. At 1,024 and a rate of 0.001 the loss is lowest after a fifth of the way, and at its end
where it began, on the text of the steps as on any other."""
STEPS, BATCH = 4, 8
SHARE, NOISE = 0.5, 0.3
"""Of the way to the fixed model; of a tensor's mean step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BillionShape:
    """What is replaced of the 100M preset's."""

    hidden_size: int
    expert_size: int
    layers: int
    heads: int
    experts: int


BILLION = BillionShape(hidden_size=1024, expert_size=1024, layers=8, heads=16, experts=38)
LITTLE = BillionShape(hidden_size=64, expert_size=64, layers=2, heads=2, experts=6)


@dataclass(frozen=True, slots=True, kw_only=True)
class BillionPlan:
    """What is played."""

    shape: BillionShape
    rounds: int
    workers: int

    @property
    def columns_held(self) -> int:
        """By each worker: each column by two of three."""
        return -(-2 * self.shape.experts // self.workers)

    @property
    def engine(self) -> Mapping[str, Any]:
        """Settings of the rounds."""
        return {
            "gather_s": 0.0,
            "min_workers": self.workers,
            "replicas": 2,
            "quorum": 2,
            "max_rounds": self.rounds,
            "checkpoint_every": 0,
            "validate_every": 1,
            "lease_ttl_s": 2400.0,
            "round_deadline_s": 3000.0,
            "fetch_s": 600.0,
            "audits": {"budget": 0.0},
            "inner": {"inner_steps": 2, "batch_sequences": 2, "warmup_steps": 0},
        }


class Played(Protocol):
    """What a run is made of."""

    @property
    def shape(self) -> BillionShape:
        """Its model's."""

    @property
    def engine(self) -> Mapping[str, Any]:
        """Settings of its rounds."""


def begin(folder: Path, plan: Played, pipe: Connection) -> None:
    """The run's folder, version 0 in it."""
    import torch

    from coordinator.datasets import prepare
    from coordinator.run.folder import init_run
    from coordinator.settings import RunSettings
    from moe import presets

    torch.set_num_threads(2)
    prepare([str(Path(__file__).parents[1])], folder / "data")
    before = presets._SHAPES["100m"]
    presets._SHAPES["100m"] = dataclasses.replace(before, **dataclasses.asdict(plan.shape))
    settings = RunSettings(
        preset="100m", data=str(folder / "data"), port=0, sequence_length=64, codec=CODEC, heldout_limit=32,
        screening_sequences=32, evaluation_batch=16, executor_threads=2, seed=1, engine=dict(plan.engine),
    )  # fmt: skip
    init_run(folder / "run", settings, accept_unaudited=True)
    pipe.send(None)


def fix(folder: Path, plan: BillionPlan, pipe: Connection) -> None:
    """The model that everybody walks to, in bf16, a file a block: version 0 after a few real steps."""
    import torch

    from coordinator.store.versions import Versions
    from moe.full import full_model
    from protocol.ids import column_of
    from protocol.tensors import encode_tensors

    torch.set_num_threads(2)
    rate = min(MOST_RATE, WIDTH_RATE / plan.shape.hidden_size)
    run = RunFolder.open(folder / "run")
    cut, settings, dataset = layout_of(run), run.settings(), run.dataset()
    versions = Versions(run.root / "versions", run.artifacts().blocks, cut)
    found = versions.manifest_digest(0)
    assert found is not None
    model = full_model(cut, versions.load_blocks(versions.manifest(found)))

    def step(parameter: Tensor) -> None:
        """As soon as its gradient is whole, which then goes: no more than one is there at a time."""
        assert parameter.grad is not None
        with torch.no_grad():
            parameter.sub_(parameter.grad.sign_(), alpha=rate)
        parameter.grad = None

    for parameter in model.parameters():
        parameter.requires_grad_()
        parameter.register_post_accumulate_grad_hook(step)  # type: ignore[no-untyped-call]
    tokens = torch.from_numpy(dataset.sequences(7, 0, STEPS * BATCH, settings.sequence_length).astype(int))
    for batch in torch.split(tokens, BATCH):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:]).backward()  # type: ignore[no-untyped-call]
    named = dict(model.named_parameters())
    (folder / "fixed").mkdir()
    for block in cut.blocks:
        column = column_of(block)
        tensors = {
            spec.name: (named[spec.name] if column is None else named[spec.name][column]).detach()
            for spec in cut.block_specs(block)
        }
        (folder / "fixed" / block).write_bytes(encode_tensors(tensors, BF16))
    pipe.send(None)


def serve(folder: Path, rounds: int, pipe: Connection) -> None:
    """The coordinator, until the last version is validated; tells its port, then what it came to."""
    from coordinator.edge.server import CoordinatorServer
    from protocol.allocator import keep_little

    keep_little()  # as `barnraise coordinator run` does

    async def run() -> None:
        server = CoordinatorServer(RunFolder.open(folder))
        pipe.send(await server.start())
        await server.finished()
        status = await server.status()
        losses = [one.val_loss for one in status.validations]
        assert status.version >= rounds, f"version {status.version} of {rounds}: {status.model_dump_json()}"
        pipe.send({
            "cpu_s": time.process_time(), "up_mb": status.bytes_up / 1e6, "down_mb": status.bytes_down / 1e6,
            "versions": status.version, "accepted": status.submissions_accepted,
            "refused": sum(status.submissions_rejected.values()), "first_loss": losses[0], "loss": losses[-1],
        })  # fmt: skip
        await server.stop()

    asyncio.run(run())


def work(folder: Path, plan: BillionPlan, link_text: str, number: int) -> None:
    """A worker, until the run is over."""
    import torch

    from protocol.joinlink import JoinLink
    from worker.agent import Agent
    from worker.home import open_home
    from worker.joining import Joining
    from worker.machine.machine import Machine
    from worker.options import WorkerOptions
    from worker.progress import make_reporter

    torch.set_num_threads(1)
    run, link, place = RunFolder.open(folder / "run"), JoinLink.parse(link_text), folder / f"worker-{number}"
    options = WorkerOptions(
        link=link_text, home=place, measure_speed=False, output="json", max_columns=plan.columns_held
    )
    home, reporter = open_home(place, link.fingerprint), make_reporter("json")
    machine = Machine(device="cpu", device_name="none", memory_bytes=64 << 30, threads=1, bf16=False)
    trainer = Walker(run, home.disk.blocks.path, home.outbox, folder, number)

    async def joined() -> None:
        await Agent(machine, Joining(options, link, home, reporter), home.outbox, trainer, reporter).run()

    asyncio.run(joined())


class Walker:
    """A `Trainer` (worker/ports.py) that knows where to go."""

    def __init__(
        self, run: RunFolder, block_path: Callable[[Any], Path], outbox: Outbox, folder: Path, number: int
    ) -> None:
        import torch

        from worker.ports import Progress

        self.progress = Progress()
        self._layout, self._block_path, self._outbox, self._folder = layout_of(run), block_path, outbox, folder
        self._generator = torch.Generator().manual_seed(number)
        self._thread: threading.Thread | None = None

    def start(self, fetched: FetchedLease, done: Callable[[Any], None], failed: Callable[[Any], None]) -> None:
        """In a thread, as training is."""
        del failed  # a thread that breaks is in the log, and the run's patience ends
        self._thread = threading.Thread(target=self._finish, args=(fetched, done), daemon=True)
        self._thread.start()

    def _finish(self, fetched: FetchedLease, done: Callable[[Any], None]) -> None:
        from worker.outbox import Submission

        lease, began_s = fetched.lease, time.monotonic()
        with (self._folder / "making.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            payload = self._payload(fetched)
            submission = Submission(
                lease_id=lease.lease_id, digest=digest_of(payload), payload_bytes=len(payload), codec=CODEC,
                inner_steps_done=lease.inner_steps, tokens=1, train_loss_first=5.0, train_loss_last=4.0,
                train_s=time.monotonic() - began_s, micro_batch=1,
            )  # fmt: skip
            self._outbox.save(submission, payload)
        print(json.dumps({"event": "made", "bytes": len(payload)}), flush=True)
        done(submission)

    def _payload(self, fetched: FetchedLease) -> bytes:
        from moe.layout import submission_specs
        from protocol.tensors import encode_each

        def tensor_of(name: str) -> Tensor:
            block, _, parameter = name.partition("/")
            return self._step(BlockId(block), parameter, self._block_path(fetched.digests[BlockId(block)]))

        specs = submission_specs(self._layout, fetched.lease.columns)
        ordered = sorted(specs, key=lambda spec: spec.name)
        return b"".join(bytes(part) for part in encode_each(ordered, tensor_of, codec_named(CODEC)))

    def _step(self, block: BlockId, parameter: str, leased: Path) -> Tensor:
        import torch

        from moe.layout import block_tensor_specs
        from protocol.tensors import decode_tensors

        specs, only = block_tensor_specs(self._layout, block), {parameter}
        start = decode_tensors(leased, specs, FP32, only=only)[parameter]
        fixed = decode_tensors(self._folder / "fixed" / block, specs, BF16, only=only)[parameter]
        step = start.sub_(fixed).mul_(SHARE)
        noise = torch.empty(step.shape).normal_(0.0, 1.0, generator=self._generator)
        return step.add_(noise, alpha=NOISE * float(step.abs().mean()))

    def stop(self) -> None:
        """It cannot be interrupted; it ends."""

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
            return not self._thread.is_alive()
        return True

"""What a round costs a worker's line: bytes down and up, by what they are for.

    python -m benchmarks.wire_bytes [--quick] [--json FILE]

Two kinds of rows for each setting. `moved`: a swarm of the real engine, executor and trainer under a virtual clock, six
workers that hold half of the columns; each has a block cache of its own on disk and fetches every lease with the
product's own fetcher, whose bytes are counted; that what came decodes to what the lease names is asserted, bit for bit.
`sizes`: the payloads of a real model's blocks, by their exact sizes. Columns are bytes a parameter a round: `trained`,
of blocks that the worker held the round before, too; `frozen`, of columns that it does not hold, over rounds in which
they are encoded anew and not; `up`, of a submission. Stated apart: `redrawn`, of a column that is held for the first
time for long, and `joiner`, of a whole first lease, all of its blocks. `manifest`: bytes of the signed manifest itself.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import torch

from benchmarks.report import Cell, machine, parse_args, print_rows, write_json
from protocol.codecs import FP32, codec_named
from protocol.ids import BlockId, Digest, WorkerId
from protocol.tensor_headers import payload_size
from protocol.tensors import decode_tensors

if TYPE_CHECKING:
    from coordinator.run.opened import OpenedRun
    from protocol.lease import Lease
    from protocol.submission import Blocks
    from worker.train.trainer import LeaseResult

UP = "bf16"
"""What submissions are sent in: the way down is measured, and does not depend on it."""
WORKERS = 6
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "whole, fp32": {"codec": "fp32", "frozen_codec": "fp32"},
    "default": {},
    "frugal": {"codec": "two_bit", "frozen_codec": "int4", "frozen_every": 12},
}
"""By name: what `[engine.down]` has in place of its defaults."""
SIZES = ("100m", "olmoe-7b")


@dataclass(slots=True)
class BytesFor:
    """Bytes of one kind, and the parameters a round that they were for."""

    bytes: int = 0
    parameters: int = 0

    def add(self, count: int, parameters: int) -> None:
        """One lease's."""
        self.bytes += count
        self.parameters += parameters

    @property
    def each(self) -> float | None:
        """Bytes a parameter a round; None where there were none."""
        return self.bytes / self.parameters if self.parameters else None


@dataclass(slots=True)
class LineCosts:
    """What was counted of one run."""

    kinds: dict[str, BytesFor] = field(
        default_factory=lambda: {k: BytesFor() for k in ("trained", "frozen", "redrawn", "up")}
    )
    joiner: BytesFor = field(default_factory=BytesFor)
    manifests: list[int] = field(default_factory=list)


class CountedLine:
    """One worker's line to the run: everything from its files, counted by digest."""

    def __init__(self, run: OpenedRun, identity: Any) -> None:
        self._run, self._identity = run, identity
        self.came: dict[Digest, int] = {}
        self.manifest_bytes = 0

    async def patiently(self, step: Any) -> Any:
        """Nothing breaks here."""
        return await step()

    async def get_manifest(self, version: int) -> Any:
        """As it is signed."""
        from protocol.manifest import sign_manifest
        from protocol.v1 import barnraise_pb2 as pb

        digest = self._run.versions.manifest_digest(version)
        assert digest is not None
        content = self._run.versions.manifest_bytes(digest)
        self.manifest_bytes = len(content)
        return pb.GetManifestReply(manifest_json=content, signature=sign_manifest(self._identity, content))

    async def block(self, digest: Digest, payload_bytes: int, offset: int) -> AsyncGenerator[bytes, None]:
        """What is served, and nothing else."""
        assert self._run.versions.is_served(digest)
        content = self._run.store.blocks.read(digest)[offset:]
        assert len(content) == payload_bytes - offset
        self.came[digest] = self.came.get(digest, 0) + len(content)
        yield content


class OwnSequences:
    """Sequences are the same in every setting: they are given, and not counted."""

    def __init__(self, sequences: Any) -> None:
        self._sequences = sequences

    async def sequences(self, lease: Lease, shape: Any, on_bytes: Any) -> Any:
        """As they are."""
        del lease, shape, on_bytes
        return self._sequences


class OwnCache:
    """One volunteer's cache, and what it held before."""

    def __init__(self, run: OpenedRun, identity: Any, folder: Path) -> None:
        from worker.allowance import DiskAllowance
        from worker.background import Threads
        from worker.blocks import BlockCache
        from worker.fetched import Run
        from worker.home import Enrolment
        from worker.train.lease_state import LeaseStates

        self._run, self._folder = run, folder
        self._line = CountedLine(run, identity)
        self._disk = DiskAllowance(folder, BlockCache(folder / "blocks"), LeaseStates(folder / "progress"), None)
        self._enrolment = Enrolment(
            worker_id=WorkerId("w"), run_id=run.engine.state.config.run_id, ca_pem="",
            manifest_public_key_hex=identity.public_key.hex(), manifest_key_vouch_hex="", trusted=False,
        )  # fmt: skip
        self._background, self._described = Threads(), Run(description=_description(run), layout=run.layout)
        self.held: frozenset[BlockId] | None = None
        self.told: list[str] = []

    def fetch(self, lease: Lease, start: Blocks, sequences_NL: Any, book: LineCosts) -> None:
        """Bring the lease's blocks here, see that they are `start`, and write down what they cost."""
        from moe.layout import block_tensor_specs
        from worker.fetch import Fetcher

        self._line.came = {}
        fetcher = Fetcher(
            self._line,  # type: ignore[arg-type]  # of a coordinator, only what a fetcher asks
            self._disk,
            self._enrolment,
            self._background,
            data=OwnSequences(sequences_NL),
            told=self.told.append,
        )
        fetched = asyncio.run(fetcher.fetch(lease, self._described, lambda _bytes: None))
        for block, digest in fetched.digests.items():
            codec = codec_named(lease.codec_of(block))
            found = decode_tensors(self._folder / "blocks" / digest, block_tensor_specs(self._run.layout, block), codec)
            assert all(torch.equal(found[name], start[block][name]) for name in found), f"{block} is another"
        assert not self.told, self.told
        self._count(lease, fetched.digests, book)

    def _count(self, lease: Lease, digests: Mapping[BlockId, Digest], book: LineCosts) -> None:
        digest = self._run.versions.manifest_digest(lease.base_version)
        assert digest is not None
        manifest = self._run.versions.manifest(digest)
        held = frozenset(lease.blocks)
        book.manifests.append(self._line.manifest_bytes)
        first, before = self.held is None, self.held or frozenset()
        for block, needed in digests.items():
            parameters = self._run.layout.block_bytes(block) // 4
            steps = (
                [step.digest for step in manifest.deltas.get(block, ())] if lease.codec_of(block) == FP32.name else []
            )
            count = sum(self._line.came.get(one, 0) for one in (needed, *steps))
            if first:
                book.joiner.add(count, parameters)
            elif block in held:
                book.kinds["trained" if block in before else "redrawn"].add(count, parameters)
            elif block not in before:  # what was given up has to come once in the other encoding: not told of a round
                book.kinds["frozen"].add(count, parameters)
        self.held = held


class CountedLeases:
    """Trains as the product does, after each worker has fetched what it trains on over its own line."""

    def __init__(self, run: OpenedRun, identity: Any, folder: Path, codec: str) -> None:
        from simulator.virtual.inner import PureLeases, Shards

        self._run, self._identity, self._folder, self._codec = run, identity, folder, codec
        self._leases = PureLeases(Shards(run.layout))
        self._workers: dict[WorkerId, OwnCache] = {}
        self.book = LineCosts()

    def __call__(self, worker: WorkerId, lease: Lease, start: Blocks, sequences_NL: Any, /) -> LeaseResult:
        """See `simulator.virtual.swarm.Training`."""
        from moe.layout import submission_specs

        if worker not in self._workers:
            self._workers[worker] = OwnCache(self._run, self._identity, self._folder / worker)
        self._workers[worker].fetch(lease, start, sequences_NL, self.book)
        specs = submission_specs(self._run.layout, lease.columns)
        up = payload_size(specs, codec_named(self._codec))
        self.book.kinds["up"].add(up, sum(spec.elements for spec in specs))
        return self._leases(worker, lease, start, sequences_NL)


def moved(name: str, rounds: int, data: str) -> dict[str, Cell]:
    """A row of what really went over six lines."""
    from coordinator.run.folder import RunFolder, init_run
    from coordinator.run.opened import OpenedRun
    from coordinator.settings import RunSettings
    from simulator.virtual.swarm import STILL, VirtualSwarm
    from simulator.virtual.volunteer import Volunteer

    engine = {
        "max_rounds": rounds, "min_workers": WORKERS, "gather_s": 0.0, "validate_every": 0, "checkpoint_every": 0,
        "heartbeat_interval_s": 5.0, "inner": {"inner_steps": 2, "batch_sequences": 4}, "down": dict(SETTINGS[name]),
    }  # fmt: skip
    settings = RunSettings(preset="tiny", data=data, seed=1, codec=UP, sim_secret_from_seed=True, engine=engine)
    with tempfile.TemporaryDirectory(prefix="barnraise-wire-") as folder:
        init_run(Path(folder) / "run", settings)
        run = RunFolder.open(Path(folder) / "run")
        opened = OpenedRun.open(run, STILL)
        try:
            crew = [Volunteer(name=str(n), max_columns=opened.layout.columns // 2) for n in range(WORKERS)]
            leases = CountedLeases(opened, run.manifest_identity(), Path(folder) / "workers", opened.settings.codec)
            VirtualSwarm(opened, crew, leases, seed=1).play()
            state, book = opened.engine.state, leases.book
            return {
                "setting": name,
                "kind": "moved",
                "model": "tiny",
                "rounds": len(state.history),
                **_down(state.config.down),
                **{kind: count.each for kind, count in book.kinds.items()},
                "joiner": book.joiner.each,
                "manifest": sum(book.manifests) // len(book.manifests),
            }
        finally:
            opened.close()


def sizes(name: str, model: str) -> dict[str, Cell]:
    """A row of a real model's exact sizes."""
    from coordinator.engine.down_config import DownConfig
    from moe.layout import block_tensor_specs, layout
    from moe.presets import preset
    from protocol.ids import TRUNK, column_block

    cut, down = layout(preset(model), "frozen"), DownConfig(**SETTINGS[name])
    trunk, column = (block_tensor_specs(cut, block) for block in (TRUNK, column_block(0)))

    def each(specs: Any, codec: str) -> float:
        return float(payload_size(specs, codec_named(codec)) / sum(spec.elements for spec in specs))

    held = [*trunk, *column]  # in these proportions a worker of one column; more are nearer to the column's own
    return {
        "setting": name,
        "kind": "sizes",
        "model": model,
        "rounds": None,
        **_down(down),
        "trained": max(each(trunk, down.codec), each(column, down.codec)),
        "frozen": each(column, down.frozen_codec) / (1 if down.frozen_codec == FP32.name else down.frozen_every),
        "redrawn": each(column, FP32.name),
        "up": each(held, UP),
        "joiner": None,
        "manifest": None,
    }


def _down(down: Any) -> dict[str, Cell]:
    return {"codec": down.codec, "frozen_codec": down.frozen_codec, "frozen_every": down.frozen_every}


def _description(run: OpenedRun) -> Any:
    import json

    from worker.lease import RunDescription

    largest = max(run.layout.block_bytes(block) for block in run.layout.blocks)
    return RunDescription(
        run_id=run.engine.state.config.run_id, name="", model_json=json.dumps(dict(run.layout.config_json)),
        residency=run.layout.residency, codec=run.settings.codec, sequence_length=run.settings.sequence_length,
        dataset_digest=Digest("0" * 64), max_block_bytes=2 * largest,
    )  # fmt: skip


def main() -> None:
    """Measure and print."""
    args = parse_args(__doc__ or "")
    torch.set_num_threads(1)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    rows = [moved(name, 8 if args.quick else 37, "stdlib") for name in SETTINGS]
    rows += [sizes(name, model) for model in SIZES for name in SETTINGS]
    print(machine())
    print_rows(rows)
    if args.json is not None:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()

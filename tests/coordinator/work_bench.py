"""A run's executor at a bench: commands for it and submissions that hold whatever a test wants."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from coordinator.engine.commands import AggregateRound, Contribution, MeasureSubmission
from coordinator.engine.events import RoundAggregated, SubmissionMeasured
from coordinator.engine.lease import GrantedLease
from coordinator.run.folder import RunFolder
from coordinator.run.opened import work_settings
from coordinator.store.versions import Versions
from coordinator.work.executor import Executor
from moe.layout import Layout, submission_specs
from protocol.codecs import codec_named
from protocol.ids import BlockId, Digest, LeaseId, RoundNumber, Version, WorkerId
from protocol.lease import DataRange
from protocol.recipe import Recipe
from protocol.tensors import encode_tensors

Tensors = dict[str, torch.Tensor]
Value = Callable[[str, tuple[int, ...]], torch.Tensor]
"""A tensor by its name and shape."""


class Bench:
    """An executor over a fresh run, and ways to make submissions for it."""

    def __init__(self, run: RunFolder) -> None:
        self.run, self.layout, self.store = run, run.layout(), run.artifacts()
        self.versions = Versions(run.root / "versions", self.store.blocks, self.layout)
        self.dataset = run.dataset()
        self.settings = run.settings().model_copy(update={"keep_checkpoints": 2})
        self.executor = Executor(
            settings=work_settings(self.settings),
            layout=self.layout,
            payloads=self.store.payloads,
            versions=self.versions,
            dataset=self.dataset,
            companions=run.companions(self.dataset),
            dtype=run.export_dtype,
            checkpoints=run.checkpoints,
            clock=lambda: 1000.0,
        )
        digest = self.versions.manifest_digest(0)
        assert digest is not None
        self.base_manifest: Digest = digest
        self.base = self.versions.load_blocks(self.versions.manifest(digest))

    def submit(self, columns: tuple[int, ...], value: Value) -> Digest:
        return self.store.payloads.put(payload_of(self.layout, columns, value))

    def measure(
        self, digest: Digest, columns: tuple[int, ...], *, gain: bool = False, **changes: Any
    ) -> SubmissionMeasured:
        command = MeasureSubmission(
            command_id="measure:r1.1", lease=lease(1, columns), digest=digest,
            payload_bytes=self.store.payloads.stat(digest) or 0, codec="fp32", heldout_seed=7, measure_gain=gain,
        )  # fmt: skip
        event = self.executor.execute(dataclasses.replace(command, **changes))
        assert isinstance(event, SubmissionMeasured)
        return event

    def aggregate(self, contributions: tuple[Contribution, ...], **changes: Any) -> RoundAggregated:
        command = AggregateRound(
            command_id="aggregate:r1", round=RoundNumber(1), parent_version=Version(0),
            parent_manifest=self.base_manifest, version=Version(1), contributions=contributions, clips=(),
            rule="mean", outer_learning_rate=1.0, outer_momentum=0.0, seed=7, oldest_needed=Version(0),
        )  # fmt: skip
        event = self.executor.execute(dataclasses.replace(command, **changes))
        assert isinstance(event, RoundAggregated)
        return event

    def blocks_of(self, event: RoundAggregated) -> dict[BlockId, Tensors]:
        return self.versions.load_blocks(self.versions.manifest(event.manifest))


def lease(number: int, columns: tuple[int, ...]) -> GrantedLease:
    return GrantedLease(
        lease_id=LeaseId(f"r1.{number}"), round=RoundNumber(1), worker=WorkerId(f"{number:032x}"),
        base_version=Version(0), columns=columns, data=DataRange(seed=1, start=0, count=4), seed=1, inner_steps=2,
        batch_sequences=2, recipe=Recipe(), granted_at_s=0.0, deadline_s=1e9,
    )  # fmt: skip


def payload_of(layout: Layout, columns: tuple[int, ...], value: Value) -> bytes:
    tensors = {spec.name: value(spec.name, spec.shape) for spec in submission_specs(layout, columns)}
    return encode_tensors(tensors, codec_named("fp32"))


def contribution(number: int, digest: Digest, columns: tuple[int, ...], **changes: Any) -> Contribution:
    plain = Contribution(
        lease_id=LeaseId(f"r1.{number}"), digest=digest, codec="fp32", columns=columns, base_version=Version(0),
        step_scale=1.0, weight=1.0, sequences=3,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def constant(value: float) -> Value:
    return lambda _, shape: torch.full(shape, value)


def three(bench: Bench) -> tuple[Contribution, ...]:
    return tuple(contribution(n, bench.submit((0,), constant(float(n))), (0,)) for n in (1, 2, 3))


def attempt(bench: Bench, sent: tuple[Contribution, ...], **changes: Any) -> AggregateRound:
    command = AggregateRound(
        command_id="aggregate:r1", round=RoundNumber(1), parent_version=Version(0),
        parent_manifest=bench.base_manifest, version=Version(1), contributions=sent, clips=(),
        rule="krum", outer_learning_rate=1.0, outer_momentum=0.5, seed=7, oldest_needed=Version(0),
    )  # fmt: skip
    return dataclasses.replace(command, **changes)

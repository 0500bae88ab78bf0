"""A version as it would be without somebody's submissions: outer steps taken again, one after the other.

Decides nothing that the command does not say. Touches artifacts and versions. Always: blocks and momenta are those of
the version it starts from, but for what the steps do to them; a step that cannot be made without those who are left
out is made block by block by what works (as a cautious command's); what lies between the steps is swept away with the
next outer step. Blocks that a step made are published whole and as they are, columns that are not held encoded anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from aggregation.norms import squared_distance
from coordinator.engine.commands import RebuildVersion
from coordinator.engine.down_config import WHOLE
from coordinator.engine.records import command_digest
from coordinator.store.ports import BlobStore
from coordinator.store.versions import Versions
from coordinator.work.outer import RoundAggregator
from protocol.errors import LocalError
from protocol.ids import BlockId, Digest

Blocks = Mapping[BlockId, dict[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came of it."""

    manifest: Digest
    change_l2: float
    """Of the difference from the version that it is compared with."""


def rebuild(
    command: RebuildVersion,
    aggregator: RoundAggregator,
    payloads: BlobStore,
    versions: Versions,
    *,
    created_at_s: float,
) -> Rebuilt:
    """The new version, durable. LocalError where a submission is gone: a cautious step would do without it."""
    wanted = dict.fromkeys(one.digest for step in command.steps for one in step.contributions)
    gone = [digest for digest in wanted if not payloads.has(digest)]
    if gone:
        raise LocalError(f"{command.command_id}: {len(gone)} of {len(wanted)} submissions are gone, as {gone[0]}")
    cause = command_digest(command)
    made = versions.find(command.version, cause)
    if made is None:
        made = _made(command, aggregator, versions, cause, created_at_s)
    present = versions.load_blocks(versions.manifest(command.parent_manifest))
    return Rebuilt(made, _distance(present, versions.load_blocks(versions.manifest(made))))


def _made(
    command: RebuildVersion, aggregator: RoundAggregator, versions: Versions, cause: str, created_at_s: float
) -> Digest:
    manifest = command.from_manifest
    for step in command.steps:
        # nobody ever has what lies between the steps, so nothing of it is rounded
        again = replace(step, version=command.version, parent_manifest=manifest, cautious=True, down=WHOLE)
        base = versions.load_blocks(versions.manifest(manifest))
        manifest = aggregator.run(again, base, created_at_s=created_at_s).manifest
    last, frozen = versions.manifest(manifest), versions.manifest(command.parent_manifest).frozen
    if frozen is not None:
        frozen = versions.put_frozen(command.version, frozen.codec, last.blocks)
    whole = replace(
        last,
        version=command.version,
        parent_version=command.parent_version,
        round=command.round,
        created_at_s=created_at_s,
        val_loss=None,
        frozen=frozen,
    )
    return versions.publish(whole, cause)


def _distance(one: Blocks, other: Blocks) -> float:
    pairs = ((tensor, other[block][name]) for block, tensors in one.items() for name, tensor in tensors.items())
    return math.sqrt(math.fsum(squared_distance(*pair) for pair in pairs))

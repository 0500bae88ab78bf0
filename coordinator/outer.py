"""One outer step: accepted submissions become the next version of the model.

Decides nothing that the command does not say: which submissions, weights, scales, clips and rule come from the engine.
Touches artifacts and versions. Always: one block is in memory at a time for all contributions; a block that nobody
returned keeps its digest and its momentum; the same command gives the same blocks, bit for bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import structlog
import torch
from safetensors import safe_open

from aggregation.blockwise import BlockContribution, aggregate_block
from aggregation.names import rule_in_force
from aggregation.norms import sum_of_squares
from aggregation.outer import OuterStep
from coordinator.artifacts import ArtifactStore
from coordinator.engine.commands import AggregateRound, Contribution
from coordinator.versions import Versions
from moe.layout import Layout
from protocol.codecs import codec_named
from protocol.ids import TRUNK, BlockId, Digest, LeaseId, column_block
from protocol.manifest import BlockRef, Manifest

Tensors = dict[str, torch.Tensor]

_log = structlog.get_logger(__name__)


class RoundAggregator:
    """Carries out `AggregateRound`."""

    def __init__(
        self, layout: Layout, store: ArtifactStore, versions: Versions, tokens_of: Callable[[LeaseId], int]
    ) -> None:
        self._layout = layout
        self._store = store
        self._versions = versions
        self._tokens_of = tokens_of

    def run(
        self, command: AggregateRound, base: Mapping[BlockId, Tensors], *, created_at_s: float
    ) -> tuple[Digest, float]:
        """The new version's manifest, durable, and the L2 norm of the whole update."""
        cause = hashlib.sha256(repr(command).encode()).hexdigest()
        parent = self._versions.manifest(command.parent_manifest)
        found = self._versions.find(command.version, cause)
        if found is not None:  # done before a restart, but the journal did not hear of it
            return found, self._update_norm(base, self._versions.manifest(found))
        blocks, momenta = dict(parent.blocks), dict(parent.momenta)
        squares: list[float] = []
        for block in self._layout.blocks:
            contributions = self._contributions(block, command)
            if not contributions:
                continue
            self._tell_rule(block, len(contributions), command)
            stepped, momentum = self._step(block, base[block], parent, contributions, command)
            squares += [sum_of_squares(stepped[name] - base[block][name]) for name in stepped]
            blocks[block] = self._versions.put_block(stepped)
            if momentum is not None:
                momenta[block] = self._versions.put_block(momentum)
        manifest = Manifest(
            run_id=parent.run_id,
            version=command.version,
            parent_version=command.parent_version,
            round=command.round,
            created_at_s=created_at_s,
            model=parent.model,
            residency=parent.residency,
            blocks=blocks,
            momenta=momenta,
            val_loss=None,
            tokens_trained=parent.tokens_trained + sum(self._tokens_of(one.lease_id) for one in command.contributions),
        )
        return self._versions.publish(manifest, cause), math.sqrt(math.fsum(squares))

    def _step(
        self,
        block: BlockId,
        base: Tensors,
        parent: Manifest,
        contributions: Sequence[BlockContribution],
        command: AggregateRound,
    ) -> tuple[Tensors, Tensors | None]:
        pseudo_gradient = aggregate_block(contributions, command.rule, seed=command.seed)
        outer = OuterStep(learning_rate=command.outer_learning_rate, momentum=command.outer_momentum)
        ref: BlockRef | None = parent.momenta.get(block)
        momentum = self._versions.load_block(block, ref) if ref is not None and command.outer_momentum else None
        return outer.step(base, pseudo_gradient, momentum)

    def _tell_rule(self, block: BlockId, contributions: int, command: AggregateRound) -> None:
        """Say it where too few contributions leave a block to another rule than the one that was set."""
        in_force = str(rule_in_force(command.rule, contributions))
        if in_force != command.rule:
            _log.warning(
                "rule_fell_back", round=command.round, block=block, contributions=contributions,
                rule=command.rule, in_force=in_force,
            )  # fmt: skip

    def _contributions(self, block: BlockId, command: AggregateRound) -> list[BlockContribution]:
        max_norm_l2 = {clip.block: clip.max_norm_l2 for clip in command.clips}.get(block, math.inf)
        return [
            BlockContribution(
                tensors=self._block_of(contribution, block),
                weight=contribution.weight,
                step_scale=contribution.step_scale,
                max_norm_l2=max_norm_l2,
            )
            for contribution in command.contributions
            if contribution.weight > 0.0 and _holds(contribution, block)
        ]

    def _block_of(self, contribution: Contribution, block: BlockId) -> Tensors:
        """One block of a payload that screening has decoded whole: only its own bytes are read."""
        codec = codec_named(contribution.codec)
        path = self._store.payloads.path(contribution.digest)
        with safe_open(path, framework="pt") as file:
            return {
                spec.name: codec.decode(file.get_tensor(f"{block}/{spec.name}"))
                for spec in self._layout.block_specs(block)
            }

    def _update_norm(self, base: Mapping[BlockId, Tensors], manifest: Manifest) -> float:
        squares: list[float] = []
        for block, ref in manifest.blocks.items():
            new = self._versions.load_block(block, ref)
            squares += [sum_of_squares(new[name] - base[block][name]) for name in new]
        return math.sqrt(math.fsum(squares))


def _holds(contribution: Contribution, block: BlockId) -> bool:
    if block == TRUNK:
        return contribution.include_trunk
    return block in map(column_block, contribution.columns)

"""One outer step: accepted submissions become a version of the model that the engine may publish.

Decides nothing that the command does not say: which submissions, weights, scales, clips and rule come from the engine.
Touches artifacts and versions. Always: one block is in memory at a time, in its new values and its new momentum: what
was submitted, and what the block was before, are read where they lie; a block that nobody returned keeps its digest and
its momentum; the same command gives the same blocks, bit for bit, and never one with a
value that is not finite. A cautious command does not fail of what was submitted, only of the disk, of memory, or of
the version that it starts from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from aggregation.blockwise import BlockContribution, aggregate_block
from aggregation.names import rule_in_force
from aggregation.norms import is_finite, squared_distance
from aggregation.outer import OuterStep
from aggregation.pieces import Piece
from coordinator.engine.commands import AggregateRound, Contribution
from coordinator.engine.events import CommandTrouble, FailedAlone, Substitute
from coordinator.engine.records import command_digest
from coordinator.store.ports import BlobStore
from coordinator.store.versions import Versions
from coordinator.work.failures import trouble_of
from coordinator.work.known_norms import KnownNorms
from coordinator.work.publishing import NextVersion
from coordinator.work.substitutes import BlockRule, summed_up
from coordinator.work.threads import one_thread
from moe.factors import as_products
from moe.layout import Layout, submission_specs
from protocol.codecs import codec_named
from protocol.errors import BarnraiseError, LocalError
from protocol.ids import TRUNK, BlockId, Digest, LeaseId, column_block
from protocol.manifest import BlockRef, Manifest
from protocol.submission import encoded_block
from protocol.text import printable

Tensors = dict[str, torch.Tensor]
Stepped = tuple[Tensors, Tensors | None]
"""A block's new values, and its new momentum where there is any."""

LAST_RESORT = "median"
"""What a cautious command tries where the run's rule fails: it looks at each coordinate alone, and divides nothing."""
MOST_ERROR_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class OuterResult:
    """What an outer step came to."""

    manifest: Digest
    update_norm_l2: float
    """Of the whole update."""
    substitutes: tuple[Substitute, ...] = ()


class RoundAggregator:
    """Carries out `AggregateRound`."""

    def __init__(
        self,
        layout: Layout,
        payloads: BlobStore,
        versions: Versions,
        sequence_length: int,
        norms: KnownNorms | None = None,
    ) -> None:
        """`norms`: those that screening has found."""
        self._layout = layout
        self._norms = norms or KnownNorms()
        self._payloads = payloads
        self._versions = versions
        self._sequence_length = sequence_length

    def run(self, command: AggregateRound, base: Mapping[BlockId, Tensors], *, created_at_s: float) -> OuterResult:
        """The new version, durable."""
        cause = command_digest(command)
        parent = self._versions.manifest(command.parent_manifest)
        found = self._versions.find(command.version, cause)
        if found is not None:  # done before a restart, but the journal did not hear of it
            update_norm_l2 = self._update_norm(base, self._versions.manifest(found))
            expected = (self._expected_rule(block, holders, command) for block, holders in self._held(command))
            return OuterResult(found, update_norm_l2, summed_up(command.rule, expected))
        squares: list[float] = []
        rules: list[BlockRule] = []
        with one_thread(), self._versions.keeping() as keep:
            coming = NextVersion(self._versions, parent, command.down, keep)
            for block, stepped, rule in self._steps(command, base, parent):
                rules.append(rule)
                if stepped is not None:
                    squares.append(_moved(base[block], coming.put(block, base[block], *stepped)))
                del stepped  # before the next block's is made
        sequences = sum(one.sequences for one in command.contributions)
        manifest = Manifest(
            run_id=parent.run_id,
            version=command.version,
            parent_version=command.parent_version,
            round=command.round,
            created_at_s=created_at_s,
            model=parent.model,
            residency=parent.residency,
            blocks=coming.blocks,
            momenta=coming.momenta,
            val_loss=None,
            tokens_trained=parent.tokens_trained + sequences * self._sequence_length,
            deltas=coming.deltas,
            masters=coming.masters,
            frozen=coming.frozen(command.version),
        )
        published = self._versions.publish(manifest, cause)
        return OuterResult(published, math.sqrt(math.fsum(squares)), summed_up(command.rule, rules))

    def candidate(
        self, command: AggregateRound, base: Mapping[BlockId, Tensors], some: Sequence[LeaseId]
    ) -> Iterator[tuple[BlockId, Tensors]]:
        """The blocks, one at a time, that the command would change with `some` of its contributions alone. Nothing is
        written.
        """
        chosen = tuple(one for one in command.contributions if one.lease_id in some)
        parent = self._versions.manifest(command.parent_manifest)
        coming = NextVersion(self._versions, parent, command.down)
        for block, stepped, _ in self._steps(replace(command, contributions=chosen), base, parent):
            if stepped is not None:
                tensors = coming.published(base[block], stepped[0]).block
                del stepped  # before the next block's is made, as are those
                yield block, tensors
                del tensors

    def failing_alone(self, command: AggregateRound, base: Mapping[BlockId, Tensors]) -> tuple[FailedAlone, ...]:
        """The contributions of which alone no step can be made, in the command's order. Nothing is written.

        Raises where the version that the step starts from is at fault: that is not theirs.
        """
        parent = self._versions.manifest(command.parent_manifest)
        for block in self._layout.blocks:
            self._momentum(block, parent, command)
        found: list[FailedAlone] = []
        for one in command.contributions:
            lost = self._why_lost(one)
            error = lost or self._why_failing(one, parent, base, command)
            if error is not None:
                found.append(FailedAlone(lease_id=one.lease_id, error=error, lost=lost is not None))
        return tuple(found)

    def _steps(
        self, command: AggregateRound, base: Mapping[BlockId, Tensors], parent: Manifest
    ) -> Iterator[tuple[BlockId, Stepped | None, BlockRule]]:
        """Block by block what the command makes of it, one at a time."""
        for block, holders in self._held(command):
            yield block, *self._carefully(block, base[block], parent, holders, command)

    def _held(self, command: AggregateRound) -> Iterator[tuple[BlockId, list[Contribution]]]:
        """The blocks that somebody with a say returned, and who."""
        for block in self._layout.blocks:
            holders = [one for one in command.contributions if one.weight > 0.0 and _holds(one, block)]
            if holders:
                yield block, holders

    @staticmethod
    def _expected_rule(block: BlockId, holders: Sequence[Contribution], command: AggregateRound) -> BlockRule:
        return BlockRule(block, len(holders), str(rule_in_force(command.rule, len(holders))))

    def _why_lost(self, one: Contribution) -> str | None:
        try:
            self._payloads.check(one.digest)
        except BarnraiseError as error:
            return _words(error)
        return None

    def _why_failing(
        self, one: Contribution, parent: Manifest, base: Mapping[BlockId, Tensors], command: AggregateRound
    ) -> str | None:
        for block in self._layout.blocks:
            if one.weight > 0.0 and _holds(one, block):
                try:
                    self._step(block, base[block], parent, [one], command, command.rule)
                except Exception as error:
                    _raise_if_machine(error)
                    return f"{block}: {_words(error)}"
        return None

    def _carefully(
        self,
        block: BlockId,
        base: Tensors,
        parent: Manifest,
        holders: Sequence[Contribution],
        command: AggregateRound,
    ) -> tuple[Stepped | None, BlockRule]:
        """The block's step by the run's rule; where a cautious command finds none, by another, or no step at all."""
        failed = ""
        for rule in _rules_to_try(command):
            try:
                stepped = self._step(block, base, parent, holders, command, rule)
            except Exception as error:
                if not command.cautious:
                    raise
                _raise_if_machine(error)
                failed = failed or _words(error)
            else:
                in_force = str(rule_in_force(rule, len(holders)))
                return stepped, BlockRule(block, len(holders), in_force, failed)
        return None, BlockRule(block, len(holders), "", failed)

    def _step(
        self,
        block: BlockId,
        base: Tensors,
        parent: Manifest,
        holders: Sequence[Contribution],
        command: AggregateRound,
        rule: str,
    ) -> Stepped:
        with one_thread():
            return self._stepped(block, base, parent, self._contributions(block, holders, command), command, rule)

    def _stepped(
        self,
        block: BlockId,
        base: Tensors,
        parent: Manifest,
        sent: Sequence[BlockContribution],
        command: AggregateRound,
        rule: str,
    ) -> Stepped:
        pseudo_gradient = aggregate_block(sent, rule, seed=command.seed)
        outer = OuterStep(
            learning_rate=command.outer_learning_rate,
            momentum=command.outer_momentum,
            share=command.step_share,
            averaged=self._layout.selection_biases,
        )
        master = parent.masters.get(block)
        start = base if master is None else self._versions.load_block(block, master)
        stepped = _with_the_rest(outer, start, pseudo_gradient, self._momentum(block, parent, command))
        for name, tensor in stepped[0].items():
            if not is_finite(tensor):
                raise LocalError(f"outer step: {name!r} of {block} would hold a value that is not finite")
        return stepped

    def _momentum(self, block: BlockId, parent: Manifest, command: AggregateRound) -> Tensors | None:
        ref: BlockRef | None = parent.momenta.get(block)
        return self._versions.load_block(block, ref) if ref is not None and command.outer_momentum else None

    def _contributions(
        self, block: BlockId, holders: Sequence[Contribution], command: AggregateRound
    ) -> list[BlockContribution]:
        max_norm_l2 = {clip.block: clip.max_norm_l2 for clip in command.clips}.get(block, math.inf)
        found: list[BlockContribution] = []
        for contribution in holders:
            tensors = self._block_of(contribution, block)
            found.append(
                BlockContribution(
                    tensors=tensors,
                    weight=contribution.weight,
                    step_scale=contribution.step_scale,
                    max_norm_l2=max_norm_l2,
                    norm_l2=self._norms.of(contribution.digest, block, tensors),
                )
            )
        return found

    def _block_of(self, contribution: Contribution, block: BlockId) -> Mapping[str, Piece]:
        """One block of a payload that screening has decoded: it stays where it lies. Of the trunk what is trained."""
        codec = codec_named(contribution.codec)
        if not self._payloads.has(contribution.digest):
            raise LocalError(f"the bytes of lease {contribution.lease_id} are not here any more")
        specs = submission_specs(self._layout, contribution.columns, contribution.trunk)
        encoded = encoded_block(self._payloads.view(contribution.digest), specs, codec, block)
        return as_products(self._layout, contribution.trunk, block, encoded)

    def _update_norm(self, base: Mapping[BlockId, Tensors], manifest: Manifest) -> float:
        squares = (_moved(base[block], self._versions.load_block(block, ref)) for block, ref in manifest.blocks.items())
        return math.sqrt(math.fsum(squares))


def _with_the_rest(outer: OuterStep, start: Tensors, pseudo_gradient: Tensors, momentum: Tensors | None) -> Stepped:
    """The step of what is trained of a block; what is not stays, and its momentum is 0."""
    if pseudo_gradient.keys() == start.keys():
        return outer.step(start, pseudo_gradient, momentum)
    trained = {name: start[name] for name in pseudo_gradient}
    before = None if momentum is None else {name: momentum[name] for name in pseudo_gradient}
    stepped, after = outer.step(trained, pseudo_gradient, before)
    if after is not None:
        after = {name: after[name] if name in after else torch.zeros_like(tensor) for name, tensor in start.items()}
    return {name: stepped.get(name, tensor) for name, tensor in start.items()}, after


def _moved(old: Tensors, new: Tensors) -> float:
    """Sum of squares of the update; in fp64 where the difference of two fp32 numbers is too large for one."""
    moved = math.fsum(squared_distance(new[name], old[name]) for name in new)
    if math.isfinite(moved):
        return moved
    return math.fsum(squared_distance(new[name], old[name], wide=True) for name in new)


def _rules_to_try(command: AggregateRound) -> Iterator[str]:
    yield command.rule
    if command.cautious and command.rule != LAST_RESORT:
        yield LAST_RESORT


def _raise_if_machine(error: Exception) -> None:
    """Disk and memory are nobody's fault, and no reason to leave anything out."""
    if trouble_of(error) is CommandTrouble.MACHINE:
        raise error


def _words(error: Exception) -> str:
    return printable((str(error) or repr(error))[:MOST_ERROR_CHARACTERS])


def _holds(contribution: Contribution, block: BlockId) -> bool:
    if block in contribution.unheard:
        return False
    if block == TRUNK:
        return contribution.include_trunk
    return block in map(column_block, contribution.columns)

"""The executor against arithmetic done by hand: measures, aggregation, outer step, validation, checkpoints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

from aggregation.blockwise import aggregate_block
from coordinator.engine.commands import (
    BlockClip,
    Contribution,
    TryContributions,
    ValidateVersion,
    WriteCheckpoint,
)
from coordinator.engine.enough import EarlyStop
from coordinator.engine.events import (
    CheckpointWritten,
    ContributionsTried,
    SubmissionMeasured,
    VersionValidated,
)
from coordinator.run.folder import RunFolder
from coordinator.run.opened import work_settings
from coordinator.work.substitutes import told
from moe.full import evaluate_loss, full_model
from protocol.errors import LocalError
from protocol.ids import TRUNK, Digest, Version, column_block
from tests.coordinator.work_bench import Bench, attempt, constant, contribution, three

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def bench(run: RunFolder) -> Bench:
    return Bench(run)


def test_norms_are_those_of_each_block_held(bench: Bench) -> None:
    event = bench.measure(bench.submit((1, 4), constant(0.5)), (1, 4))
    assert event.malformed == ""
    norms = {norm.block: norm.norm_l2 for norm in event.norms}
    assert set(norms) == {TRUNK, column_block(1), column_block(4)}
    for block, norm_l2 in norms.items():
        elements = sum(math.prod(spec.shape) for spec in bench.layout.block_specs(block))
        assert norm_l2 == pytest.approx(0.5 * math.sqrt(elements))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_malformed(bench: Bench, value: float) -> None:
    def nearly_all_fine(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        tensor = torch.zeros(shape)
        if name.startswith("column.1/"):
            tensor.view(-1)[-1] = value
        return tensor

    event = bench.measure(bench.submit((1,), nearly_all_fine), (1,))
    assert "column.1" in event.malformed
    assert "not finite" in event.malformed
    assert event.norms == ()


def test_other_columns_than_leased_are_malformed(bench: Bench) -> None:
    event = bench.measure(bench.submit((2,), constant(0.0)), (1,))
    assert "column.1" in event.malformed or "bytes" in event.malformed


def test_gain_is_positive_downhill_negative_uphill_and_zero_for_nothing(bench: Bench) -> None:
    columns = tuple(range(bench.layout.columns))
    model = full_model(bench.layout, bench.base)
    tokens = torch.from_numpy(bench.dataset.sequences(3, 0, 16, 32).astype(np.int64))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}

    def along(sign: float) -> Callable[[str, tuple[int, ...]], torch.Tensor]:
        def value(name: str, shape: tuple[int, ...]) -> torch.Tensor:
            block, _, parameter = name.partition("/")
            gradient = gradients[parameter]
            assert gradient is not None
            row = gradient if block == TRUNK else gradient[int(block.removeprefix("column."))]
            return sign * 0.2 * row

        return value

    downhill = bench.measure(bench.submit(columns, along(1.0)), columns, gain=True).heldout_gain
    uphill = bench.measure(bench.submit(columns, along(-1.0)), columns, gain=True).heldout_gain
    nothing = bench.measure(bench.submit(columns, constant(0.0)), columns, gain=True).heldout_gain
    assert uphill < 0.0 < downhill
    assert nothing == 0.0


def test_a_loss_that_is_not_finite_is_a_finite_terrible_gain(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([torch.full((4,), 5.0), torch.full((4,), math.nan), torch.full((4,), 5.0)])
    monkeypatch.setattr("coordinator.work.gains.sequence_losses", lambda *_: next(losses))
    event = bench.measure(bench.submit((0,), constant(1.0)), (0,), gain=True)
    assert event.malformed == ""
    assert event.heldout_gain == event.full_gain == -1e9


def test_a_mean_by_block_leaves_what_nobody_held(bench: Bench) -> None:
    one, two = bench.submit((0, 1), constant(1.0)), bench.submit((1, 2), constant(3.0))
    event = bench.aggregate((contribution(1, one, (0, 1)), contribution(2, two, (1, 2))))
    new, base = bench.blocks_of(event), bench.base
    for block, step in ((TRUNK, 2.0), (column_block(0), 1.0), (column_block(1), 2.0), (column_block(2), 3.0)):
        for name, tensor in new[block].items():
            torch.testing.assert_close(tensor, base[block][name] - step)
    parent, child = bench.versions.manifest(bench.base_manifest), bench.versions.manifest(event.manifest)
    assert child.blocks[column_block(5)] == parent.blocks[column_block(5)]
    assert child.tokens_trained == 2 * 3 * 32
    assert (child.version, child.parent_version, child.momenta) == (1, 0, {})
    moved = [new[b][n] - base[b][n] for b in new for n in new[b]]
    expected = math.sqrt(sum(float(delta.double().square().sum()) for delta in moved))
    assert event.update_norm_l2 == pytest.approx(expected, rel=1e-4)


def test_step_scale_weight_clip_and_trunk_share(bench: Bench) -> None:
    one, two = bench.submit((0,), constant(1.0)), bench.submit((0,), constant(5.0))
    trunk_elements = sum(math.prod(spec.shape) for spec in bench.layout.block_specs(TRUNK))
    clip = BlockClip(block=TRUNK, max_norm_l2=2.0 * math.sqrt(trunk_elements))
    event = bench.aggregate(
        (contribution(1, one, (0,), step_scale=2.0), contribution(2, two, (0,), weight=3.0)), clips=(clip,)
    )
    new = bench.blocks_of(event)
    name = next(iter(new[TRUNK]))
    torch.testing.assert_close(new[TRUNK][name], bench.base[TRUNK][name] - 2.0)  # both clipped to or at 2
    column = column_block(0)
    name = next(iter(new[column]))
    torch.testing.assert_close(new[column][name], bench.base[column][name] - (2.0 + 3 * 5.0) / 4)
    once = bench.aggregate(
        (contribution(1, one, (0,)), contribution(2, two, (0,), include_trunk=False)), version=Version(2)
    )
    name = next(iter(new[TRUNK]))
    torch.testing.assert_close(bench.blocks_of(once)[TRUNK][name], bench.base[TRUNK][name] - 1.0)


def test_momentum_is_kept_by_block(bench: Bench) -> None:
    digest = bench.submit((0,), constant(1.0))
    settings = {"outer_momentum": 0.5, "outer_learning_rate": 0.1}
    first = bench.aggregate((contribution(1, digest, (0,)),), **settings)
    manifest = bench.versions.manifest(first.manifest)
    assert set(manifest.momenta) == {TRUNK, column_block(0)}
    only_trunk = contribution(1, bench.submit((), constant(1.0)), ())
    second = bench.aggregate(
        (only_trunk,), parent_version=Version(1), parent_manifest=first.manifest, version=Version(2), **settings
    )
    after = bench.versions.manifest(second.manifest)
    assert after.momenta[column_block(0)] == manifest.momenta[column_block(0)]
    assert after.blocks[column_block(0)] == manifest.blocks[column_block(0)]
    momentum = bench.versions.load_block(TRUNK, after.momenta[TRUNK])
    assert float(next(iter(momentum.values())).flatten()[0]) == pytest.approx(1.5)  # 0.5 * 1 + 1


def test_repeating_an_aggregation_answers_with_what_is_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = bench.submit((0,), constant(1.0)), bench.submit((0,), constant(2.0))
    first = bench.aggregate((contribution(1, one, (0,)),))
    again = Bench(bench.run)  # another process
    monkeypatch.setattr("coordinator.work.outer.aggregate_block", None)  # would fail if it were computed anew
    repeated = again.aggregate((contribution(1, one, (0,)),))
    assert repeated.manifest == first.manifest
    assert repeated.update_norm_l2 == pytest.approx(first.update_norm_l2)
    monkeypatch.undo()
    assert again.aggregate((contribution(2, two, (0,)),)).manifest != first.manifest


def test_bucketing_deals_by_the_commands_seed(bench: Bench) -> None:
    sent = tuple(contribution(n, bench.submit((0,), constant(2.0**n)), (0,)) for n in range(6))
    name = next(iter(bench.base[TRUNK]))
    seen = set()
    for seed in range(6):
        event = bench.aggregate(sent, rule="bucketing+median", seed=seed)
        moved = bench.blocks_of(event)[TRUNK][name] - bench.base[TRUNK][name]
        seen.add(round(float(moved.flatten()[0]), 2))
        assert bench.aggregate(sent, rule="bucketing+median", seed=seed).manifest == event.manifest
    assert len(seen) > 1


def test_blocks_that_too_few_contributions_leave_to_another_rule_are_summed_up(bench: Bench) -> None:
    sent = tuple(contribution(n, bench.submit((0, 1, 3), constant(float(n))), (0, 1, 3)) for n in range(2))
    alone = contribution(5, bench.submit((5,), constant(1.0)), (5,), include_trunk=False)
    (made,) = bench.aggregate((*sent, alone), rule="krum").substitutes
    assert (made.rule, made.in_force, made.fewest, made.most, made.error) == ("krum", "mean", 1, 2, "")
    assert made.trunk
    assert [(span.first, span.last) for span in made.columns] == [(0, 1), (3, 3), (5, 5)]
    assert told(made) == (
        "the trunk and columns 0-1, 3, 5 had 1 to 2 submissions each, too few for krum, and were made by a plain mean, "
        "which one wrong submission moves at will; more workers, or more replicas of each column, mend it"
    )
    again = Bench(bench.run).aggregate((*sent, alone), rule="krum")
    assert again.substitutes == (made,), "what is there already is told the same"
    assert bench.aggregate(sent, rule="mean").substitutes == ()


@pytest.mark.parametrize("rule", ["trimmed_mean", "mean", "nnm+krum", "geometric_median"])
def test_two_zeroed_columns_of_three_leave_the_column_as_it_was(bench: Bench, rule: str) -> None:
    def zeroed(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.zeros(shape) if name.startswith("column.2/") else torch.full(shape, 0.5)

    payloads = [bench.submit((2, 3), value) for value in (zeroed, zeroed, constant(0.5))]
    sent = tuple(contribution(n, digest, (2, 3)) for n, digest in enumerate(payloads))
    norms = [{norm.block: norm.norm_l2 for norm in bench.measure(digest, (2, 3)).norms} for digest in payloads]
    clips = tuple(
        BlockClip(block=block, max_norm_l2=median(one[block] for one in norms))
        for block in (TRUNK, column_block(2), column_block(3))
    )
    assert [clip.max_norm_l2 == 0.0 for clip in clips] == [False, True, False]
    after = bench.blocks_of(bench.aggregate(sent, rule=rule, clips=clips))
    for name, tensor in bench.base[column_block(2)].items():
        assert torch.equal(after[column_block(2)][name], tensor)
    for name, tensor in bench.base[column_block(3)].items():
        torch.testing.assert_close(after[column_block(3)][name], tensor - 0.5)


def test_aggregation_takes_one_thread_and_gives_the_others_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def noted(*arguments: Any, **named: Any) -> Tensors:
        seen.append(torch.get_num_threads())
        return aggregate_block(*arguments, **named)

    monkeypatch.setattr("coordinator.work.outer.aggregate_block", noted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        bench.aggregate(three(bench))
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


class Breaks:
    """`aggregate_block`, but it divides by zero where a marked contribution takes part (in some company, say)."""

    def __init__(self, marked: float, *, least: int = 1, rules: tuple[str, ...] = ("krum", "median")) -> None:
        self.marked, self.least, self.rules = marked, least, rules

    def __call__(self, sent: Any, rule: str, *, seed: int | None = None) -> Tensors:
        values = [float(next(iter(one.tensors.values())).span(0, 1)) for one in sent]
        if self.marked in values and len(values) >= self.least and rule in self.rules:
            raise ZeroDivisionError("0 / 0")
        return aggregate_block(sent, rule, seed=seed)


def tried(bench: Bench, sent: tuple[Contribution, ...], **changes: Any) -> ContributionsTried:
    command = TryContributions(command_id="try:r1", attempt=attempt(bench, sent, **changes))
    event = bench.executor.execute(command)
    assert isinstance(event, ContributionsTried)
    return event


def test_who_fails_alone_is_found_in_order_and_nothing_is_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = three(bench)
    monkeypatch.setattr("coordinator.work.outer.aggregate_block", Breaks(2.0))
    kept = set(bench.store.blocks.digests())
    with pytest.raises(ZeroDivisionError):
        bench.executor.execute(attempt(bench, sent))
    assert [(one.lease_id, one.error, one.lost) for one in tried(bench, sent).failed] == [
        ("r1.2", "trunk: 0 / 0", False)
    ]
    assert set(bench.store.blocks.digests()) == kept
    assert bench.versions.manifest_digest(1) is None


def test_bytes_that_the_disk_lost_or_changed_are_not_held_against_their_worker(bench: Bench) -> None:
    sent = three(bench)
    path = Path(bench.store.payloads.place(sent[0].digest))
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    bench.store.payloads.drop(sent[2].digest)
    assert [(one.lease_id, one.lost) for one in tried(bench, sent).failed] == [("r1.1", True), ("r1.3", True)]


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error")])
def test_the_machines_trouble_leaves_nobody_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    sent = three(bench)

    def fails(*_: Any, **__: Any) -> Tensors:
        raise error

    monkeypatch.setattr("coordinator.work.outer.aggregate_block", fails)
    for cautious in (False, True):
        with pytest.raises(type(error)):
            bench.executor.execute(attempt(bench, sent, cautious=cautious))
    with pytest.raises(type(error)):
        tried(bench, sent)


def test_a_base_that_cannot_be_read_is_nobodys_fault(bench: Bench) -> None:
    first = bench.aggregate(three(bench), outer_momentum=0.5)
    momentum = bench.versions.manifest(first.manifest).momenta[column_block(0)]
    bench.store.blocks.drop(Digest(momentum.digest))
    with pytest.raises(LocalError, match="is not in"):
        tried(bench, three(bench), parent_manifest=first.manifest)


def test_a_cautious_step_takes_another_rule_where_the_runs_own_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = three(bench)
    monkeypatch.setattr("coordinator.work.outer.aggregate_block", Breaks(3.0, least=2, rules=("krum",)))
    event = bench.aggregate(sent, rule="krum", cautious=True)
    (made,) = event.substitutes
    assert (made.rule, made.in_force, made.error) == ("krum", "median", "0 / 0")
    assert told(made) == "the trunk and column 0: krum failed on 3 submissions (0 / 0), and median took its place"
    name = next(iter(bench.base[TRUNK]))
    torch.testing.assert_close(bench.blocks_of(event)[TRUNK][name], bench.base[TRUNK][name] - 2.0)


def test_a_cautious_step_leaves_a_block_alone_where_every_rule_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = three(bench)
    monkeypatch.setattr("coordinator.work.outer.aggregate_block", Breaks(3.0))
    event = bench.aggregate(sent, rule="krum", cautious=True)
    (left,) = event.substitutes
    assert (left.in_force, left.error) == ("", "0 / 0")
    assert told(left).startswith("the trunk and column 0 stayed as before the round: no rule could combine 3")
    assert bench.versions.manifest(event.manifest).blocks == bench.versions.manifest(bench.base_manifest).blocks
    assert event.update_norm_l2 == 0.0


def test_a_block_that_would_not_be_finite_is_never_published(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def infected(sent: Any, rule: str, *, seed: int | None = None) -> Tensors:
        return {name: tensor * math.nan for name, tensor in aggregate_block(sent, rule, seed=seed).items()}

    monkeypatch.setattr("coordinator.work.outer.aggregate_block", infected)
    with pytest.raises(LocalError, match="not finite"):
        bench.aggregate(three(bench))
    assert bench.versions.manifest_digest(1) is None


def test_the_norm_of_an_update_is_finite_where_its_differences_are_not(bench: Bench) -> None:
    first = bench.aggregate((contribution(1, bench.submit((0,), constant(-3e38)), (0,)),), outer_learning_rate=30.0)
    back = (contribution(1, bench.submit((0,), constant(3e38)), (0,)),)
    changes = {"parent_version": Version(1), "parent_manifest": first.manifest, "version": Version(2)}
    second = bench.aggregate(back, outer_learning_rate=60.0, **changes)
    assert math.isfinite(first.update_norm_l2)
    assert math.isfinite(second.update_norm_l2)


def test_old_versions_are_swept_but_not_what_is_still_needed(bench: Bench) -> None:
    digest = bench.submit((0,), constant(0.1))
    manifests = [bench.base_manifest]
    for version in range(1, 5):
        event = bench.aggregate(
            (contribution(1, digest, (0,)),),
            parent_version=Version(version - 1),
            parent_manifest=manifests[-1],
            version=Version(version),
            oldest_needed=Version(2 if version == 4 else 0),
        )
        manifests.append(event.manifest)
    kept = [version for version in range(5) if bench.versions.manifest_digest(version)]
    assert kept == [0, 2, 3, 4]
    for version in kept:
        bench.versions.load_blocks(bench.versions.manifest(manifests[version]))
    assert not bench.store.blocks.has(manifests[1])


def test_validation_is_the_full_models_heldout_loss(bench: Bench) -> None:
    command = ValidateVersion(command_id="validate:v0", version=Version(0), manifest=bench.base_manifest)
    event = bench.executor.execute(command)
    assert isinstance(event, VersionValidated)
    tokens = torch.from_numpy(bench.dataset.heldout_all(32, 4).astype(np.int64))
    expected, _ = evaluate_loss(full_model(bench.layout, bench.base), tokens, 4)
    assert event.val_loss == pytest.approx(expected)
    assert 4.0 < event.val_loss < 7.0


def test_checkpoints_rotate(bench: Bench) -> None:
    for version in (1, 2, 3):
        command = WriteCheckpoint(
            command_id=f"checkpoint:v{version}", version=Version(version), manifest=bench.base_manifest
        )
        event = bench.executor.execute(command)
        assert isinstance(event, CheckpointWritten)
        assert (Path(event.path) / "model.safetensors").is_file()
        assert (Path(event.path) / "tokenizer.json").is_file()
    assert sorted(path.name for path in bench.run.checkpoints.iterdir()) == ["version-000002", "version-000003"]


def test_all_of_it_and_a_part_are_measured_apart_and_own_sequences_where_it_is_asked(bench: Bench) -> None:
    columns = tuple(range(bench.layout.columns))

    def noise(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(name)))

    digest = bench.submit(columns, noise)
    whole = bench.measure(digest, columns, gain=True, part=0.25, taken=1.0)
    short = bench.measure(digest, columns, gain=True, part=0.25, taken=0.25)
    assert whole.heldout_gain == short.heldout_gain
    assert whole.full_gain < short.full_gain < 0.0
    assert whole.own_gain is None
    own = bench.measure(digest, columns, gain=True, own_data=True).own_gain
    assert own is not None
    assert own < 0.0


def test_more_sequences_are_drawn_where_the_first_speak_against_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def losses(_model: object, tokens_NL: torch.Tensor, _batch: int) -> torch.Tensor:
        seen.append(len(tokens_NL))
        return torch.full((len(tokens_NL),), float(len(seen)))  # each time worse

    monkeypatch.setattr("coordinator.work.gains.sequence_losses", losses)
    bench.measure(bench.submit((0,), constant(0.1)), (0,), gain=True)
    drawn = bench.settings.screening_sequences
    assert seen[0] == drawn
    assert seen[-2:] == [3 * drawn, 3 * drawn]  # after, and before: the round's other submissions share it


def test_measuring_stops_where_it_is_sure(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    gains: list[float] = []

    def losses(_model: object, tokens_NL: torch.Tensor, _batch: int) -> torch.Tensor:
        seen.append(len(tokens_NL))
        return torch.full((len(tokens_NL),), -gains[0] * len(seen)) + 0.01 * torch.arange(len(tokens_NL)) % 0.02

    def measured(gain: float, **changes: Any) -> SubmissionMeasured:
        seen.clear()
        gains[:] = [gain]
        bench.executor._gains._baselines.clear()
        return bench.measure(digest, (0,), gain=True, early=early, **changes)

    monkeypatch.setattr("coordinator.work.gains.sequence_losses", losses)
    seen: list[int] = []
    bench.executor._gains._settings = dataclasses.replace(work_settings(bench.settings), screening_sequences=64)
    early: EarlyStop | None = EarlyStop(
        least=0.01, full_least=-0.25, spread=0.02, margin=2.0, doubt_margin=3.0, max_doubt=0.1
    )
    digest = bench.submit((0,), constant(0.1))
    drawn = len(bench.dataset.screening_batch(7, 64, bench.settings.sequence_length, 1))
    for_all, for_part = drawn // 4, drawn - drawn // 4
    few = measured(0.1)
    assert (few.part_sequences, few.full_sequences) == (4, 2)
    assert seen == [2, 2, 4, 4]
    assert few.part_spread < 0.02  # its own, which four sequences do not tell: the error is the usual one's
    assert few.heldout_gain_se == pytest.approx(0.02 / 2)
    assert few.full_gain_se == pytest.approx(0.02 * 4 / math.sqrt(2))
    harmful = measured(-0.5)
    assert (harmful.part_sequences, harmful.full_sequences) == (16, for_all)
    assert measured(0.0).part_sequences == for_part
    assert measured(0.1, own_data=True).full_sequences == for_all
    early = None
    whole = measured(0.1)
    assert (whole.part_sequences, whole.full_sequences) == (for_part, for_all)


def test_no_more_sequences_at_a_time_than_memory_holds(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = work_settings(bench.settings)
    assert settings.bounded(bench.layout) == settings, "what is small is as the operator says"
    monkeypatch.setattr("coordinator.work.gains.PASSING_BYTES", 1)
    on_gpu = dataclasses.replace(settings, evaluation_device="cuda")
    assert on_gpu.bounded(bench.layout) == on_gpu
    executor = Bench(bench.run).executor
    assert executor._settings.evaluation_batch == executor._gains._settings.evaluation_batch == 1

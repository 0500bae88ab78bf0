"""A frozen and a `lora` trunk from end to end: a half trained model goes on learning, and a liar is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from transformers import OlmoeConfig

from coordinator.datasets import Dataset, prepare
from coordinator.engine.events import LeaseReplayed
from coordinator.engine.records import event_from_json
from coordinator.run.folder import init_run
from coordinator.run.opened import OpenedRun
from coordinator.settings import RunSettings
from moe.export import export_checkpoint, import_checkpoint
from moe.full import initial_blocks
from moe.layout import layout
from moe.shard import build_shard
from protocol.errors import ConfigError
from protocol.ids import TRUNK, BlockId, WorkerId
from protocol.lease import Lease
from protocol.recipe import Recipe
from protocol.submission import Blocks
from simulator.adversaries.adversary import Adversary
from simulator.virtual.inner import PureLeases, Shards
from simulator.virtual.swarm import STILL, VirtualSwarm
from simulator.virtual.volunteer import Volunteer
from worker.train.optimizer import InnerOptimizer
from worker.train.trainer import LeaseResult

CREW = tuple(Volunteer(name=str(number)) for number in range(5))
FOUNDER = Volunteer(name="founder", trusted=True, owner="ann")
LIAR = CREW[0]
LENGTH = 32


@pytest.fixture(scope="module")
def data(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "prepared"
    prepare([str(corpus)], folder)
    return folder


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that has learnt something, and could learn more."""
    config = OlmoeConfig(
        vocab_size=264, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_experts=4, num_experts_per_tok=2, norm_topk_prob=True, max_position_embeddings=128,
        pad_token_id=256, bos_token_id=257, eos_token_id=258,
    )  # fmt: skip
    cut, dataset = layout(config, "frozen"), Dataset.open(data)
    shard = build_shard(cut, range(4), initial_blocks(config, cut, 1))
    inner = InnerOptimizer(shard, Recipe())
    for step in range(30):
        tokens = torch.from_numpy(dataset.sequences(9, 16 * step, 16, LENGTH).astype("int64"))
        shard.loss(tokens).total.backward()
        inner.step(min(1.0, (step + 1) / 4))
    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    export_checkpoint(shard.held_blocks(), cut, folder, companions=dataset.companions)
    return folder


def played(
    folder: Path, base: Path, data: Path, inner: Mapping[str, Any], codec: str = "bf16", **engine: Any
) -> tuple[OpenedRun, list[Any], list[Lease]]:
    """A run that is over, what workers were told of their submissions, and what they trained."""
    settings = RunSettings(
        checkpoint=str(base),
        data=str(data),
        codec=codec,
        sequence_length=LENGTH,
        heldout_limit=64,
        screening_sequences=16,
        sim_secret_from_seed=True,
        engine={
            "max_rounds": 6,
            "min_workers": len(CREW) + 1,
            "replicas": 6,
            "quorum": 4,
            "gather_s": 0.0,
            "heartbeat_interval_s": 1.0,
            "checkpoint_every": 0,
            "validate_every": 1,
            "inner": {"inner_steps": 4, "batch_sequences": 8, "warmup_rounds": 0, **inner},
            "audits": {"budget": 2.0},
            **engine,
        },
    )
    run = OpenedRun.open(init_run(folder, settings), STILL)
    lies = {LIAR.worker: Adversary.of(attack="sign-flip", strength=None, seed=7, vocab_size=264)}
    told: list[Any] = []
    leases: list[Lease] = []
    pure = PureLeases(Shards(run.layout))

    def training(worker: WorkerId, lease: Lease, start: Blocks, sequences_NL: NDArray[Any], /) -> LeaseResult:
        leases.append(lease)
        return pure(worker, lease, start, sequences_NL)

    swarm = VirtualSwarm(run, [*CREW, FOUNDER], training, seed=0, colluders=lies, on_verdict=told.append)
    swarm.play()
    return run, told, leases


def trunk_digests(run: OpenedRun) -> list[str]:
    digests = [run.versions.manifest_digest(version) for version in range(run.engine.state.version + 1)]
    return [run.versions.manifest(digest).blocks[TRUNK].digest for digest in digests if digest is not None]


@pytest.mark.parametrize(
    ("inner", "codec"),
    [
        ({"trunk": "frozen"}, "bf16"),
        ({"trunk": "lora", "lora_rank": 4, "lora_epoch_rounds": 2}, "bf16"),
        ({"trunk": "lora", "lora_rank": 4, "lora_epoch_rounds": 2, "optimizer": "adamw"}, "two_bit"),
    ],
    ids=["frozen", "lora", "feedback"],
)
def test_it_learns_the_honest_are_accepted_audits_agree_and_a_liar_is_refused(
    tmp_path: Path, base: Path, data: Path, inner: dict[str, Any], codec: str
) -> None:
    run, told, leases = played(tmp_path / "run", base, data, inner, codec)
    state = run.engine.state
    losses = [one.val_loss for one in state.validations]
    print(losses, state.totals.submissions_rejected)
    assert losses[-1] < losses[0]
    assert state.version == 6
    refused = [one for one in told if not one.accepted and one.worker != LIAR.worker]
    assert not refused, [(one.lease_id, one.reason) for one in refused]
    assert any(not one.accepted for one in told if one.worker == LIAR.worker), "the sign-flipping liar is refused"
    events = [event_from_json(text) for _, text in run.journal.read()]
    assert {lease.trunk.mode for lease in leases} == {inner["trunk"]}
    audits = [one for one in events if isinstance(one, LeaseReplayed)]
    lies = {one.lease_id for one in state.accusations}
    assert {one.worker for one in state.accusations} <= {LIAR.worker}
    assert {one.lease_id for one in audits} - lies, "some of the honest were computed again"
    for one in audits:
        assert not one.error
        assert (max(one.trunk, one.columns) < 1e-4) == (one.lease_id not in lies), one
    exported = tmp_path / "exported"
    blocks = run.versions.load_blocks(run.versions.manifest(state.manifest))
    export_checkpoint(blocks, run.layout, exported)
    again, before = import_checkpoint(exported)[1], import_checkpoint(base)[1]
    still = {name for name, tensor in again[TRUNK].items() if torch.equal(tensor, before[TRUNK][name])}
    if inner["trunk"] == "frozen":
        assert still == set(again[TRUNK])
        assert len(set(trunk_digests(run))) == 1, "nobody fetches it again"
    else:
        assert still == {"model.embed_tokens.weight", "lm_head.weight"}
    moved = BlockId("column.0")
    assert not all(torch.equal(again[moved][name], before[moved][name]) for name in again[moved])
    run.close()


def test_fixed_factors_are_the_same_for_an_epoch_of_rounds_and_then_others(
    tmp_path: Path, base: Path, data: Path
) -> None:
    lora = {"trunk": "lora", "lora_rank": 2, "lora_epoch_rounds": 2, "inner_steps": 1}
    run, _, leases = played(tmp_path / "run", base, data, lora, screening={"enabled": False}, max_rounds=4)
    seeds: dict[int, set[int]] = {}
    for lease in leases:
        if getattr(lease, "audits", None) is not None:
            continue  # it says what an earlier round's did
        seeds.setdefault((lease.round - 1) // 2, set()).add(lease.lora_seed)
    assert sorted(seeds) == [0, 1]
    assert all(len(own) == 1 for own in seeds.values())
    assert len(set.union(*seeds.values())) == 2
    run.close()


def test_a_run_from_random_weights_trains_its_trunk(tmp_path: Path, data: Path) -> None:
    settings = RunSettings(preset="tiny", data=str(data), engine={"inner": {"trunk": "frozen"}})
    with pytest.raises(ConfigError, match="begin with a checkpoint"):
        init_run(tmp_path / "run", settings)

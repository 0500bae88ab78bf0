"""Each attack does to a pseudo-gradient what its name says, the same way every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from protocol.errors import ConfigError
from protocol.ids import TRUNK, BlockId, LeaseId, RoundNumber, column_block
from protocol.submission import Blocks
from simulator.adversaries.adversary import Adversary
from simulator.adversaries.attack import Colluders, Honest
from simulator.adversaries.table import ATTACKS

VOCAB = 259


@pytest.fixture
def honest() -> Blocks:
    generator = torch.Generator().manual_seed(0)
    shapes: dict[BlockId, dict[str, tuple[int, ...]]] = {
        TRUNK: {"embed": (6, 4), "norm": (4,)},
        column_block(1): {"gate": (3, 4)},
    }
    return {b: {n: torch.randn(shape, generator=generator) for n, shape in ts.items()} for b, ts in shapes.items()}


def forged(attack: str, blocks: Blocks, strength: float | None = None, lease: str = "r1.0"):
    return Adversary.of(attack=attack, strength=strength, seed=7, vocab_size=VOCAB).on_result(alone(blocks, lease))


def alone(blocks: Blocks, lease: str = "r1.0") -> Colluders:
    own = Honest(lease_id=LeaseId(lease), round=RoundNumber(1), columns=(1,), pseudo_gradient=blocks)
    return Colluders(own=own, group=(own,))


def flat(blocks: Blocks) -> Tensor:
    return torch.cat([t.reshape(-1) for _, ts in sorted(blocks.items()) for _, t in sorted(ts.items())])


def test_sign_flip_and_scale(honest: Blocks) -> None:
    assert torch.equal(flat(forged("sign-flip", honest, 3.0)), -3 * flat(honest))
    assert torch.equal(flat(forged("scale", honest)), ATTACKS["scale"].strength * flat(honest))


def test_noise_has_the_honest_norm_and_no_direction(honest: Blocks) -> None:
    big = {TRUNK: {"w": torch.randn(200, 200, generator=torch.Generator().manual_seed(1))}}
    noise = flat(forged("noise", big))
    assert noise.norm().item() == pytest.approx(flat(big).norm().item(), rel=1e-4)
    assert abs(torch.cosine_similarity(noise, flat(big), dim=0).item()) < 0.03
    assert not torch.equal(noise, flat(forged("noise", big, lease="r2.0")))


def test_nan_spoils_one_value_of_each_tensor(honest: Blocks) -> None:
    assert [int(t.isnan().sum()) for ts in forged("nan", honest).values() for t in ts.values()] == [1, 1, 1]


def test_a_free_rider_sends_next_to_nothing(honest: Blocks) -> None:
    assert 0 < flat(forged("free-ride", honest)).norm() < 0.02 * flat(honest).norm()


def test_label_flip_touches_the_data_alone(honest: Blocks) -> None:
    tokens = np.arange(200, dtype=np.int64).reshape(4, 50)
    adversary = Adversary.of(attack="label-flip", strength=None, seed=7, vocab_size=VOCAB)
    assert np.array_equal(adversary.on_batch(LeaseId("r1.0"), RoundNumber(1), tokens), VOCAB - 1 - tokens)
    assert torch.equal(flat(adversary.on_result(alone(honest))), flat(honest))
    half = Adversary.of(attack="label-flip", strength=0.5, seed=7, vocab_size=VOCAB).on_batch(
        LeaseId("r1.0"), RoundNumber(1), tokens
    )
    assert 0.3 < (half != tokens).mean() < 0.7
    assert half.min() >= 0
    assert half.max() < VOCAB


def test_other_attacks_leave_the_data_alone() -> None:
    tokens = np.arange(20, dtype=np.int64).reshape(2, 10)
    assert (
        Adversary.of(attack="scale", strength=None, seed=7, vocab_size=VOCAB).on_batch(
            LeaseId("r1.0"), RoundNumber(1), tokens
        )
        is tokens
    )


def test_an_unknown_attack_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'sybil'.*sign-flip"):
        Adversary.of(attack="sybil", strength=None, seed=0, vocab_size=VOCAB)

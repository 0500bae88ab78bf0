"""Rows that are decoded as the walk comes by: the same answers, bit for bit, and no more decoding than passes."""

from __future__ import annotations

import pytest
import torch

from aggregation.blockwise import BlockContribution, aggregate_block
from aggregation.norms import block_norm
from aggregation.pieces import granules
from aggregation.replayed import replay_distance
from aggregation.rules import RULES, aggregate_pieces
from protocol.codecs import CODECS, GRANULE
from protocol.errors import LocalError
from protocol.ids import TRUNK
from protocol.specs import TensorSpec
from protocol.tensors import EncodedTensor, encode_tensors, encoded_tensors

SPECS = [TensorSpec("a", (2, GRANULE // 2 + 50)), TensorSpec("b", (7,)), TensorSpec("c", (0,)), TensorSpec("d", ())]
WIDTH = 1 << 14


def row(seed: int, codec: str) -> dict[str, EncodedTensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {spec.name: torch.randn(spec.shape, generator=generator) for spec in SPECS}
    payload = encode_tensors(tensors, CODECS[codec])
    return encoded_tensors(memoryview(bytearray(payload)), SPECS, CODECS[codec])


@pytest.mark.parametrize("codec", ["bf16", "ternary"])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_answers_as_for_tensors(rule: str, codec: str) -> None:
    rows = [list(row(seed, codec).values()) for seed in range(5)]
    weights, scales = [1.0, 2.0, 1.0, 1.5, 1.0], [1.0, 0.5, 2.0, 1.0, 0.0]
    lazy = aggregate_pieces(rows, weights, rule, scales=scales, seed=1, chunk_columns=WIDTH)
    whole = [[piece.whole() for piece in pieces] for pieces in rows]
    expected = aggregate_pieces(whole, weights, rule, scales=scales, seed=1, chunk_columns=WIDTH)
    for got, wanted in zip(lazy, expected, strict=True):
        assert torch.equal(got, wanted)


def test_blocks_norms_and_replays_are_those_of_the_tensors() -> None:
    sent = [row(seed, "bf16") for seed in range(3)]
    whole = [{name: piece.whole() for name, piece in one.items()} for one in sent]
    assert [block_norm(one) for one in sent] == [block_norm(one) for one in whole]
    for scale in (1.0, 1e-32):  # the small one is applied beforehand
        lazy = aggregate_block([BlockContribution(one, 1.0, scale, 2.0) for one in sent], "trimmed_mean")
        expected = aggregate_block([BlockContribution(one, 1.0, scale, 2.0) for one in whole], "trimmed_mean")
        assert all(torch.equal(lazy[name], expected[name]) for name in expected)
    assert replay_distance({TRUNK: sent[0]}, {TRUNK: sent[1]}) == replay_distance({TRUNK: whole[0]}, {TRUNK: whole[1]})


class Counted:
    """A piece that notes what it was asked for."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values, self.asked = values, list[tuple[int, int]]()
        self.shape, self.dtype = tuple(values.shape), values.dtype

    def span(self, start: int, stop: int) -> torch.Tensor:
        self.asked.append((start, stop))
        return self.values[start:stop]


@pytest.mark.parametrize(("rule", "passes"), [("mean", 1), ("median", 1), ("centered_clipping", 2), ("multi_krum", 2)])
@pytest.mark.parametrize("columns", [1 << 12, 30_000, 1 << 20])
def test_a_granule_is_decoded_once_a_pass_and_whole(rule: str, passes: int, columns: int) -> None:
    size = GRANULE + 1000
    rows = [Counted(torch.randn(size, generator=torch.Generator().manual_seed(seed))) for seed in range(4)]
    aggregate_pieces([[one] for one in rows], [1.0] * 4, rule, chunk_columns=columns)
    assert max((one.asked for one in rows), key=len) == list(granules(size)) * passes


def test_a_row_that_has_no_part_in_the_result_is_not_decoded_for_it() -> None:
    rows = [Counted(torch.full((GRANULE + 1,), value)) for value in (0.0, 1.0, 3.0, 1e30)]
    aggregate_pieces([[one] for one in rows], [1.0] * 4, "krum")
    assert [len(one.asked) for one in rows] == [2, 4, 2, 2]


def test_what_is_not_finite_is_named() -> None:
    rows = [Counted(torch.zeros(GRANULE + 10)) for _ in range(3)]
    rows[1].values[GRANULE + 3] = torch.nan
    for rule in ("mean", "median", "centered_clipping", "krum"):
        with pytest.raises(LocalError, match="row 1 is not finite in piece 0 between"):
            aggregate_pieces([[one] for one in rows], [1.0] * 3, rule)

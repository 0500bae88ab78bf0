"""Names of a submission's tensors, and what its decoder does with other payloads than the leased one."""

from __future__ import annotations

import pytest
import torch

from protocol.codecs import BF16, FP32
from protocol.errors import MalformedMessage
from protocol.ids import TRUNK, BlockId, column_block
from protocol.specs import TensorSpec
from protocol.submission import decode_submission, encode_submission, encoded_block
from protocol.tensors import encode_tensors

COLUMN = column_block(3)
GRADIENT = {TRUNK: {"norm.weight": torch.arange(4.0)}, COLUMN: {"up": torch.ones(2, 3), "down": torch.full((3,), 2.0)}}
SPECS = [
    TensorSpec("trunk/norm.weight", (4,)),
    TensorSpec("column.3/up", (2, 3)),
    TensorSpec("column.3/down", (3,)),
]


def test_tensors_are_called_block_and_parameter() -> None:
    trunk, column = GRADIENT[TRUNK], GRADIENT[COLUMN]
    flat = {"column.3/down": column["down"], "column.3/up": column["up"], "trunk/norm.weight": trunk["norm.weight"]}
    assert encode_submission(GRADIENT, BF16) == encode_tensors(flat, BF16)


def test_one_block_is_read_of_a_payload_without_the_others() -> None:
    """The others' bytes are not even looked at: here they say something else than was sent."""
    payload = bytearray(encode_submission(GRADIENT, FP32))
    payload[-16:] = b"\xff" * 16  # the trunk comes last: names are sorted
    found = encoded_block(memoryview(payload), SPECS, FP32, COLUMN)
    assert {name: tensor.whole().tolist() for name, tensor in found.items()} == {
        "up": [[1.0] * 3] * 2,
        "down": [2.0] * 3,
    }
    assert encoded_block(memoryview(payload), SPECS, FP32, BlockId("column.1")) == {}


def test_another_lease_s_payload_is_refused_whole_and_by_block() -> None:
    payload = encode_submission({TRUNK: GRADIENT[TRUNK]}, FP32)
    with pytest.raises(MalformedMessage):
        decode_submission(payload, SPECS, FP32, (TRUNK, COLUMN))
    with pytest.raises(MalformedMessage):
        encoded_block(memoryview(bytearray(payload)), SPECS, FP32, TRUNK)

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocol.codecs import BF16, FP32, codec_named
from protocol.errors import MalformedMessage

_FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=32)


@given(values=_FLOATS)
def test_fp32_is_exact(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    assert torch.equal(FP32.decode(FP32.encode(tensor)), tensor)


@given(values=st.lists(st.floats(width=32, min_value=2.0**-100, max_value=2.0**100), min_size=1, max_size=32))
def test_bf16_error_is_at_most_one_part_in_256(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    decoded = BF16.decode(BF16.encode(tensor))
    assert decoded.dtype == torch.float32
    assert bool(((decoded - tensor).abs() <= tensor.abs() * 2**-8).all())


@given(values=_FLOATS)
def test_encoding_what_was_decoded_changes_nothing_more(values: list[float]) -> None:
    once = BF16.encode(torch.tensor(values, dtype=torch.float32))
    assert torch.equal(BF16.encode(BF16.decode(once)), once)


def test_encoded_tensors_are_detached_contiguous_and_in_main_memory() -> None:
    parameter = torch.randn(3, 4, requires_grad=True)
    for codec in (FP32, BF16):
        encoded = codec.encode(parameter.T)
        assert encoded.is_contiguous()
        assert not encoded.requires_grad
        assert encoded.dtype == codec.wire_dtype


def test_names_find_their_codec_and_unknown_ones_list_the_known() -> None:
    assert codec_named("fp32") is FP32
    assert codec_named("bf16") is BF16
    with pytest.raises(MalformedMessage, match="known are bf16, fp32"):
        codec_named("int4" * 1000)

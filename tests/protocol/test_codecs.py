import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protocol.codec_names import CODEC_NAMES
from protocol.codecs import BF16, CODECS, FP32, Codec, codec_named
from protocol.errors import MalformedMessage
from protocol.specs import TensorSpec

_FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=32)


def _through(codec: Codec, tensor: Tensor) -> Tensor:
    return codec.decode(codec.encode(tensor).parts, TensorSpec("t", tuple(tensor.shape)))


def test_the_names_that_help_lists_are_those_that_there_are() -> None:
    assert tuple(CODECS) == CODEC_NAMES


@given(values=_FLOATS)
def test_fp32_is_exact(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    assert torch.equal(_through(FP32, tensor), tensor)


@given(values=st.lists(st.floats(width=32, min_value=2.0**-100, max_value=2.0**100), min_size=1, max_size=32))
def test_bf16_error_is_at_most_one_part_in_256(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    assert bool(((_through(BF16, tensor) - tensor).abs() <= tensor.abs() * 2**-8).all())


@given(values=_FLOATS)
def test_encoding_what_was_decoded_changes_nothing_more(values: list[float]) -> None:
    once = _through(BF16, torch.tensor(values, dtype=torch.float32))
    assert torch.equal(_through(BF16, once), once)


def test_names_find_their_codec_and_unknown_ones_list_the_known() -> None:
    assert codec_named("fp32") is FP32
    assert codec_named("bf16") is BF16
    with pytest.raises(MalformedMessage, match=f"known are {', '.join(sorted(CODECS))}"):
        codec_named("int4" * 1000)


SMAPS = Path("/proc/self/smaps")


def _asked_for_huge_pages(address: int) -> bool:
    """Of the mapping that `address` is in, whether the system was asked for huge pages."""
    here = False
    for line in SMAPS.read_text(encoding="utf-8").splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            here = int(found[1], 16) <= address < int(found[2], 16)
        elif here and line.startswith("VmFlags:"):
            return " hg" in line
    return False


@pytest.mark.skipif(
    not SMAPS.exists() or not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no huge pages to ask for"
)
@pytest.mark.parametrize("name", [name for name in CODECS if name != "fp32"])
def test_a_large_tensor_is_decoded_into_huge_pages(name: str) -> None:
    codec, spec = CODECS[name], TensorSpec("t", (3 << 20,))
    decoded = codec.decode(codec.encode(torch.ones(spec.shape)).parts, spec)
    assert _asked_for_huge_pages(decoded.data_ptr() + decoded.nbytes // 2)

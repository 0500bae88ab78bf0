"""Decoders of hostile pieces: refused, or read as harmless or visible values; never a crash, never more memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from protocol.codecs import CODECS, GRANULE
from protocol.codecs_grouped import GroupedCodec
from protocol.errors import MalformedMessage
from protocol.specs import TensorSpec
from protocol.tensor_headers import payload_size
from protocol.tensors import decode_tensors, encode_tensors
from tests.protocol.codec_contract import BYTES_AN_ELEMENT, Largest, values

GROUPED = {name: codec for name, codec in CODECS.items() if isinstance(codec, GroupedCodec)}
SIZES = st.sampled_from((1, 2, 63, 64, 65, 300, 2049, 4095, 4096, 4097, 9000))
SPEC = TensorSpec("t", (4096 + 640,))


def noisy(part: Tensor, seed: int, changed: float) -> Tensor:
    """`part` with that share of its bytes replaced."""
    generator = torch.Generator().manual_seed(seed)
    plain = part.clone().view(-1).view(torch.uint8)
    noise = torch.randint(0, 256, plain.shape, generator=generator, dtype=torch.uint8)
    hit = torch.rand(plain.shape, generator=generator) < changed
    return torch.where(hit, noise, plain).view(part.dtype).view(part.shape)


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=60)
@given(size=SIZES, seed=st.integers(0, 10_000), changed=st.sampled_from((0.001, 0.05, 1.0)))
def test_any_bytes_are_refused_or_read(name: str, size: int, seed: int, changed: float) -> None:
    codec, spec = CODECS[name], TensorSpec("t", (size,))
    parts = tuple(noisy(part, seed, changed) for part in codec.encode(values(spec, seed)).parts)
    payload = bytearray(encode_tensors({"t": values(spec)}, codec))
    content = b"".join(bytes(part.view(-1).view(torch.uint8).tolist()) for part in parts)
    payload[-len(content) :] = content
    try:
        decoded = codec.decode(parts, spec)
    except MalformedMessage:
        with pytest.raises(MalformedMessage):
            decode_tensors(payload, [spec], codec)
        return
    assert (decoded.shape, decoded.dtype) == (spec.shape, torch.float32)
    assert torch.equal(decode_tensors(payload, [spec], codec)["t"].view(torch.int32), decoded.view(torch.int32))


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38, -1.0, 1e-40])
def test_a_scale_that_no_encoder_writes_is_visible_or_harmless(name: str, bad: float) -> None:
    codec = GROUPED[name]
    scales, codes = codec.encode(values(SPEC)).parts
    hostile = scales.clone()
    hostile[: codec.scales_per_group] = bad
    plain, decoded = codec.decode((scales, codes), SPEC), codec.decode((hostile, codes), SPEC)
    assert torch.equal(decoded[codec.group :], plain[codec.group :])
    assert math.isfinite(bad) or not bool(decoded[: codec.group].isfinite().all())


@pytest.mark.parametrize("name", CODECS)
def test_a_size_that_lies_costs_nothing(name: str) -> None:
    codec = CODECS[name]
    payload = encode_tensors({"t": values(SPEC)}, codec)
    for lying in (payload[:-2], payload + b"\0\0", payload[: payload_size([TensorSpec("t", (1,))], codec)]):
        with Largest() as largest, pytest.raises(MalformedMessage):
            decode_tensors(lying, [SPEC], codec)
        assert largest.bytes == 0


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [512, 4096 + 512, GRANULE, 5 * GRANULE + 4096 + 512])
def test_decoding_takes_memory_as_the_shape_does(name: str, size: int) -> None:
    codec, spec = CODECS[name], TensorSpec("t", (size,))
    parts = codec.encode(values(spec)).parts
    codec.decode(parts, spec)
    hostile = tuple(noisy(part, 0, 0.1) for part in parts)
    with Largest() as largest, contextlib.suppress(MalformedMessage):
        codec.decode(hostile, spec)
    with Largest() as honest:
        codec.decode(parts, spec)
    assert max(largest.bytes, honest.bytes) <= BYTES_AN_ELEMENT * size


def test_ternary_words_that_stand_for_nothing_are_refused() -> None:
    """The largest word that stands for something is 3**17 - 1, all ones; the next one is refused."""
    codec, spec = CODECS["ternary"], TensorSpec("t", (16 * 17,))
    scales = torch.ones(1, dtype=torch.bfloat16)
    ones = codec.encode(torch.ones(spec.shape)).parts
    assert torch.equal(codec.decode((scales, ones[1]), spec), torch.ones(spec.shape))
    low = ones[1][:32].view(torch.int16)
    assert int(low[0]) & 0xFFFF == (3**17 - 1) & 0xFFFF
    raised = ones[1].clone()
    raised[:32].view(torch.int16)[3] += 1
    with pytest.raises(MalformedMessage, match="ternary"):
        codec.decode((scales, raised), spec)


def top_k_codes(places: Sequence[int], extra_bit: int | None = None) -> tuple[Tensor, Tensor]:
    """A block of 640 values with ten places, as the codec writes them; `extra_bit` is set in its map, too."""
    quads = 4
    codes = torch.zeros(5 * quads, dtype=torch.uint8)
    low = [place & 63 for place in places] + [0] * (4 * quads - len(places))
    for column in range(quads):
        whole = sum(low[column + quads * plane] << 6 * plane for plane in range(4))
        for index in range(3):
            codes[quads * (1 + index) + column] = whole >> 8 * index & 255
    for bit in [(place >> 6) + index for index, place in enumerate(places)] + [extra_bit] * (extra_bit is not None):
        assert bit is not None
        codes[4 * quads + bit // 8] |= 1 << bit % 8
    return torch.tensor([2.0, 3.0], dtype=torch.bfloat16), codes


RISING = (0, 1, 70, 71, 130, 300, 301, 400, 600, 639)


def test_places_are_read_as_they_are_written() -> None:
    codec, spec = CODECS["top_k"], TensorSpec("t", (640,))
    decoded = codec.decode(top_k_codes(RISING), spec)
    assert tuple(decoded.nonzero().view(-1).tolist()) == RISING
    encoded = codec.encode(decoded)
    assert torch.equal(encoded.parts[1][4:], top_k_codes(RISING)[1][4:])


@pytest.mark.parametrize(
    ("places", "extra_bit"),
    [
        ((0, 0, *RISING[2:]), None),
        ((1, 0, *RISING[2:]), None),
        ((*RISING[:-1], 600), None),
        ((*RISING[:-1], 640), None),
        ((*RISING[:-1], 64 * 22), None),
        (RISING, 20),
        (RISING[:-1], None),
    ],
    ids=["twice", "falling", "last twice", "just outside", "far outside", "too many", "too few"],
)
def test_places_that_no_encoder_writes_are_refused(places: Sequence[int], extra_bit: int | None) -> None:
    codec, spec = CODECS["top_k"], TensorSpec("t", (640,))
    with pytest.raises(MalformedMessage, match="top_k"):
        codec.decode(top_k_codes(places, extra_bit), spec)


@pytest.mark.parametrize("name", GROUPED)
def test_a_mapped_file_is_read_in_spans_without_a_copy(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Pieces that share one buffer, one after the other, as they lie in a file."""
    codec, spec = GROUPED[name], TensorSpec("t", (2 * GRANULE + 77,))
    parts = codec.encode(values(spec)).parts
    path = tmp_path_factory.mktemp("spans") / "parts"
    path.write_bytes(b"".join(bytes(part.view(-1).view(torch.uint8).numpy()) for part in parts))
    mapped = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
    scales, codes = mapped[: parts[0].nbytes].view(torch.bfloat16), mapped[parts[0].nbytes :]
    whole = codec.decode(parts, spec)
    for start in range(0, spec.elements, GRANULE):
        stop = min(start + GRANULE, spec.elements)
        assert torch.equal(codec.decode_span((scales, codes), spec, start, stop), whole[start:stop])


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("size", [0, 1, 5, 63, 272, 273, 300, 4097, GRANULE + 1])
def test_every_piece_has_an_even_size(name: str, size: int) -> None:
    """So that the scales of the next tensor in a file lie where two bytes can be read at once."""
    assert not any(part.nbytes % 2 for part in GROUPED[name].encode(torch.ones(size)).parts)

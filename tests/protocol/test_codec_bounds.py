"""The bounds that codecs state hold for any finite values; what error feedback holds back comes out in the end."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from protocol.codecs import CODECS, GRANULE, Codec
from protocol.codecs_grouped import GroupedCodec
from protocol.codecs_int import IntCodec
from protocol.errors import LocalError, MalformedMessage
from protocol.specs import TensorSpec

GROUPED = {name: codec for name, codec in CODECS.items() if isinstance(codec, GroupedCodec)}
INTS = {name: codec for name, codec in GROUPED.items() if isinstance(codec, IntCodec)}
FEEDBACK = {name: codec for name, codec in GROUPED.items() if codec.has_state}
LARGEST = torch.finfo(torch.float32).max
SMALLEST_NORMAL = 2.0**-126
SCALES = (1e-45, 1e-42, 1e-38, 2e-38, 1e-30, 1e-19, 1.0, 1e19, 1e30, 1e38)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def hostile(draw: st.DrawFn) -> Tensor:
    """Any floats; normal values of any size up to the largest; all equal; one among zeros; two sizes in a group."""
    kind = draw(st.sampled_from(("any", "normal", "equal", "lone", "mixed")))
    if kind == "any":
        return torch.tensor(draw(st.lists(FLOATS, max_size=300)), dtype=torch.float32)
    size = draw(st.integers(1, 5000))
    if kind == "equal":
        return torch.full((size,), draw(FLOATS))
    if kind == "lone":
        tensor = torch.zeros(size)
        tensor[draw(st.integers(0, size - 1))] = draw(FLOATS)
        return tensor
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    tensor = (tensor * draw(st.sampled_from(SCALES))).clamp_(-LARGEST, LARGEST)  # nothing times infinity is no number
    if kind == "mixed":
        tensor[::7] *= draw(st.sampled_from((0.0, 1e-6, 1e-3, 1e3)))
    return tensor.clamp_(-LARGEST, LARGEST)


def through(codec: Codec, tensor: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    encoded = codec.encode(tensor, state)
    return codec.decode(encoded.parts, TensorSpec("t", tuple(tensor.shape))), encoded.state


def groups(tensor: Tensor, codec: GroupedCodec) -> Tensor:
    """[G, N], in fp64, filled up with zeros."""
    missing = -tensor.numel() % codec.group
    return torch.nn.functional.pad(tensor.double(), (0, missing)).view(-1, codec.group)


@pytest.mark.parametrize("name", INTS)
@given(tensor=hostile())
def test_an_integers_error_is_half_a_step(name: str, tensor: Tensor) -> None:
    codec = INTS[name]
    decoded, _ = through(codec, tensor)
    wanted_GN, decoded_GN = groups(tensor, codec), groups(decoded, codec)
    step_G1 = (1.008 * wanted_GN.abs().amax(-1, keepdim=True) / codec.highest).clamp(min=SMALLEST_NORMAL)
    assert bool(((decoded_GN - wanted_GN).abs() <= 0.501 * step_G1).all())


@pytest.mark.parametrize("name", FEEDBACK)
@example(tensor=torch.tensor([torch.finfo(torch.float32).max]))
@given(tensor=hostile())
def test_with_feedback_no_error_is_larger_than_sending_nothing_makes(name: str, tensor: Tensor) -> None:
    codec = FEEDBACK[name]
    decoded, _ = through(codec, tensor)
    wanted_GN, error_GN = groups(tensor, codec), groups(decoded, codec) - groups(tensor, codec)
    assert bool((error_GN.abs() <= 1.01 * wanted_GN.abs().amax(-1, keepdim=True)).all())
    assert bool((error_GN.norm(dim=-1) <= 1.001 * wanted_GN.norm(dim=-1)).all())


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("scale", SCALES)
def test_normal_values_of_any_size_lose_no_more_than_those_of_size_one(name: str, scale: float) -> None:
    """Else a codec could keep its bound and send nothing. Below fp32's normal numbers there are fewer bits to keep."""
    codec = GROUPED[name]
    tensor = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    errors = []
    for sized in (tensor, tensor * scale):
        decoded, _ = through(codec, sized)
        errors.append(float((decoded.double() - sized.double()).norm() / sized.double().norm()))
    assert scale < 1e-37 or errors[1] == pytest.approx(errors[0], rel=0.01)


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("size", [1, 64, 4096])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_number_comes_back_as_a_number(name: str, size: int, sign: float) -> None:
    """A scale that is rounded up would lead past it."""
    decoded, _ = through(GROUPED[name], torch.full((size,), sign * LARGEST))
    assert bool(decoded.isfinite().all())
    assert float(decoded.abs().amax()) > 0.9 * LARGEST


@pytest.mark.parametrize(("name", "value"), [*((name, 1e-39) for name in FEEDBACK), ("two_bit", 1.5e-38)])
def test_what_is_too_small_for_a_scale_is_not_sent_and_not_lost(name: str, value: float) -> None:
    """Also where values are normal numbers, and only the scale that fits them, a third less of two bits, is none."""
    tensor = torch.full((4096,), value)
    decoded, state = through(FEEDBACK[name], tensor)
    assert not decoded.any()
    assert state is not None
    assert torch.equal(state, tensor)


@pytest.mark.parametrize(("name", "most"), [("int8", 0.008), ("int4", 0.12), ("two_bit", 0.35), ("ternary", 0.44)])
def test_what_dense_codecs_lose_of_normal_values(name: str, most: float) -> None:
    tensor = torch.randn(3, GRANULE + 100, generator=torch.Generator().manual_seed(0))
    decoded, _ = through(GROUPED[name], tensor)
    assert float((decoded - tensor).norm() / tensor.norm()) < most


def test_top_k_sends_the_largest_of_each_block() -> None:
    codec = GROUPED["top_k"]
    tensor = torch.randn(2 * 4096 + 640, generator=torch.Generator().manual_seed(0))
    decoded, _ = through(codec, tensor)
    for start, stop, sent in ((0, 4096, 64), (4096, 8192, 64), (8192, 8832, 10)):
        found = decoded[start:stop].nonzero().view(-1)
        wanted = tensor[start:stop].abs().topk(sent).indices.sort().values
        assert torch.equal(found, wanted)
        assert torch.equal(decoded[start:stop][found].sign(), tensor[start:stop][found].sign())
        chosen = tensor[start:stop][found].abs()
        assert float((decoded[start:stop][found].abs() - chosen).norm()) < 0.12 * float(chosen.norm())


@pytest.mark.parametrize("name", ["ternary", "top_k"])
@pytest.mark.parametrize("size", [1, 64, 2048])
def test_values_that_are_all_equal_are_sent_as_they_are(name: str, size: int) -> None:
    decoded, _ = through(GROUPED[name], torch.full((size,), -0.75))
    assert set(decoded.unique().tolist()) <= {-0.75, 0.0}
    assert int((decoded != 0).sum()) == (size if name == "ternary" else -(-size // 64))


@pytest.mark.parametrize("name", FEEDBACK)
@settings(max_examples=20)
@given(seed=st.integers(0, 99), size=st.integers(1, 6000), rounds=st.integers(1, 40))
def test_all_that_was_decoded_and_the_last_state_are_all_that_was_wanted(
    name: str, seed: int, size: int, rounds: int
) -> None:
    """Less what has faded, where states do; in fp64, to within the rounding of fp32 at each round."""
    codec = FEEDBACK[name]
    generator = torch.Generator().manual_seed(seed)
    wanted, got, state = torch.zeros(size).double(), torch.zeros(size).double(), None
    largest = 0.0
    for turn in range(rounds):
        tensor = torch.randn(size, generator=generator) * 10.0 ** (turn % 3 - 1)
        faded = 0.0 if state is None else state.double() * (1 - codec.state_decay)
        decoded, state = through(codec, tensor, state)
        assert state is not None
        wanted += tensor.double() - faded
        got += decoded.double()
        largest = max(largest, float(state.abs().amax()), float(decoded.abs().amax()))
    assert state is not None
    assert float((got + state.double() - wanted).abs().max()) <= 4 * rounds * largest * 2.0**-24


@pytest.mark.parametrize("name", FEEDBACK)
def test_states_stay_small_over_many_rounds(name: str) -> None:
    """Also where a few values are far larger than all others, which is what groups are worst at."""
    codec = FEEDBACK[name]
    generator = torch.Generator().manual_seed(0)
    state, norms = None, []
    for _ in range(300):
        tensor = torch.randn(4096, generator=generator)
        tensor[::500] *= 30
        _, state = through(codec, tensor, state)
        assert state is not None
        norms.append(float(state.norm() / tensor.norm()))
    early, late = torch.tensor(norms[50:150]).mean(), torch.tensor(norms[200:]).mean()
    assert late < 1.25 * early


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_wherever_it_stands(name: str, bad: float) -> None:
    codec = GROUPED[name]
    for size, place in ((1, 0), (70, 69), (GRANULE + 300, GRANULE + 299), (3 * GRANULE, 5)):
        tensor = torch.ones(size)
        tensor[place] = bad
        with pytest.raises(MalformedMessage, match="not finite"):
            codec.encode(tensor)
        if codec.has_state:
            with pytest.raises(MalformedMessage, match="not finite"):
                codec.encode(torch.ones(size), tensor)


@pytest.mark.parametrize("name", FEEDBACK)
def test_a_state_of_another_tensor_is_a_bug(name: str) -> None:
    with pytest.raises(LocalError, match="a state of"):
        FEEDBACK[name].encode(torch.ones(3, 4), torch.ones(4, 3))


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("change", [torch.Tensor.double, torch.Tensor.bfloat16, lambda tensor: tensor.T.contiguous().T])
def test_other_dtypes_and_strides_are_encoded_as_what_they_hold(name: str, change: Callable[[Tensor], Tensor]) -> None:
    codec = GROUPED[name]
    tensor = torch.randn(70, 30, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    first, second = codec.encode(tensor), codec.encode(change(tensor))
    assert all(torch.equal(one, other) for one, other in zip(first.parts, second.parts, strict=True))


def test_four_bits_are_what_compressed_tensors_reads() -> None:
    """`weight_packed` and `weight_scale` of its `pack-quantized`, symmetric, in groups of 64: read by its rule."""
    rows, columns = 5, 192
    tensor = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    scales, codes = GROUPED["int4"].encode(tensor).parts
    weight_packed, weight_scale = codes.view(torch.int32).view(rows, -1), scales.view(rows, -1)
    unpacked = torch.stack([(weight_packed >> 4 * place) & 15 for place in range(8)], dim=-1).view(rows, -1) - 8
    by_group = unpacked.view(rows, -1, 64) * weight_scale.float().unsqueeze(-1)
    assert torch.equal(by_group.view(rows, columns), through(GROUPED["int4"], tensor)[0])
    assert int(unpacked.min()) >= -7


@pytest.mark.parametrize("name", INTS)
@pytest.mark.parametrize("size", [1, 63, 64, 1000, GRANULE + 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_integers_are_decoded_into_memory_that_is_there(name: str, size: int, dtype: torch.dtype) -> None:
    """In bf16 as if they had been decoded in fp32 and rounded, once."""
    codec = INTS[name]
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(1))
    values = torch.empty(size, dtype=dtype)
    codec.decode_into(codec.encode(tensor).parts, values)
    assert torch.equal(values, through(codec, tensor)[0].to(dtype))

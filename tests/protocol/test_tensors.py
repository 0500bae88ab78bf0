"""Payloads come back bit for bit; what is not exactly what was leased is refused before a byte is allocated."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from protocol.codecs import BF16, FP32, Codec
from protocol.errors import LocalError, MalformedMessage
from protocol.specs import TensorSpec
from protocol.tensor_headers import payload_size
from protocol.tensors import decode_tensors, encode_parts, encode_tensors

_NAMES = st.text(alphabet=st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=12).filter(
    lambda name: name.isprintable() and name != "__metadata__"
)
_SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
_SPECS = st.dictionaries(_NAMES, _SHAPES, max_size=5).map(
    lambda shapes: [TensorSpec(name, shape) for name, shape in shapes.items()]
)
_CODECS = st.sampled_from([FP32, BF16])


def _tensors(specs: list[TensorSpec], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {spec.name: torch.randn(spec.shape, generator=generator) for spec in specs}


@pytest.fixture
def no_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every tensor allocation of the decoder an error that no refusal can be mistaken for."""

    def refuse(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("allocated")

    monkeypatch.setattr(torch, "empty", refuse)


@given(specs=_SPECS, codec=_CODECS, seed=st.integers(0, 99))
def test_round_trip_from_memory(specs: list[TensorSpec], codec: Codec, seed: int) -> None:
    tensors = _tensors(specs, seed)
    payload = encode_tensors(tensors, codec)
    decoded = decode_tensors(payload, specs, codec)
    assert sorted(decoded) == sorted(tensors)
    for name, tensor in tensors.items():
        assert decoded[name].dtype == torch.float32
        spec = TensorSpec(name, tuple(tensor.shape))
        assert torch.equal(decoded[name], codec.decode(codec.encode(tensor).parts, spec))


@given(specs=_SPECS, codec=_CODECS)
def test_size_is_known_before_the_bytes_exist(specs: list[TensorSpec], codec: Codec) -> None:
    assert payload_size(specs, codec) == len(encode_tensors(_tensors(specs), codec))


@given(specs=_SPECS, codec=_CODECS)
def test_the_safetensors_library_reads_it(specs: list[TensorSpec], codec: Codec) -> None:
    tensors = _tensors(specs)
    read = safetensors.torch.load(encode_tensors(tensors, codec))
    assert {name: tuple(tensor.shape) for name, tensor in read.items()} == {spec.name: spec.shape for spec in specs}
    assert all(torch.equal(read[name], codec.encode(tensors[name]).parts[0]) for name in tensors)


@given(specs=_SPECS, codec=_CODECS, order=st.randoms(use_true_random=False))
def test_bytes_do_not_depend_on_the_order_of_names(specs: list[TensorSpec], codec: Codec, order: Any) -> None:
    tensors = _tensors(specs)
    names = list(tensors)
    order.shuffle(names)
    assert encode_tensors({name: tensors[name] for name in names}, codec) == encode_tensors(tensors, codec)


def test_round_trip_from_a_file_and_from_a_view_into_a_buffer(tmp_path: Path) -> None:
    specs = [TensorSpec("b", (3, 5)), TensorSpec("a", ()), TensorSpec("empty", (0, 2))]
    payload = encode_tensors(_tensors(specs), BF16)
    path = tmp_path / "payload"
    path.write_bytes(payload)
    whole = decode_tensors(payload, specs, BF16)
    buffer = memoryview(bytearray(b"xx" + payload))[2:]
    for source in (path, buffer):
        decoded = decode_tensors(source, specs, BF16)
        assert all(torch.equal(decoded[name], whole[name]) for name in whole)


def test_decoded_tensors_own_their_memory() -> None:
    buffer = bytearray(encode_tensors({"a": torch.ones(4)}, FP32))
    decoded = decode_tensors(buffer, [TensorSpec("a", (4,))], FP32)["a"]
    buffer[-16:] = bytes(16)
    assert torch.equal(decoded, torch.ones(4))


def test_non_finite_values_pass_for_the_coordinator_to_judge() -> None:
    tensor = torch.tensor([float("nan"), float("inf"), -float("inf")])
    decoded = decode_tensors(encode_tensors({"a": tensor}, BF16), [TensorSpec("a", (3,))], BF16)["a"]
    assert torch.equal(decoded.isnan(), tensor.isnan())
    assert torch.equal(decoded.isinf(), tensor.isinf())


def test_parts_make_the_payload_without_copying_fp32_values() -> None:
    tensors = {"a": torch.arange(6.0)}
    parts = list(encode_parts(tensors, FP32))
    assert b"".join(parts) == encode_tensors(tensors, FP32)
    tensors["a"][0] = 7.0
    assert bytes(parts[1]) == tensors["a"].numpy().tobytes()


_GOOD_SPECS = [TensorSpec("a", (2, 3)), TensorSpec("b", (100,))]


@given(data=st.data())
def test_every_truncation_and_extension_is_refused(data: st.DataObject) -> None:
    payload = encode_tensors(_tensors(_GOOD_SPECS), FP32)
    cut = data.draw(st.integers(0, len(payload) - 1))
    for wrong in (payload[:cut], payload + payload[: cut + 1]):
        with pytest.raises(MalformedMessage, match="bytes, expected"):
            decode_tensors(wrong, _GOOD_SPECS, FP32)


@settings(max_examples=200)
@given(data=st.data())
def test_any_changed_header_byte_is_refused(data: st.DataObject) -> None:
    payload = bytearray(encode_tensors(_tensors(_GOOD_SPECS), FP32))
    header_bytes = 8 + int.from_bytes(payload[:8], "little")
    payload[data.draw(st.integers(0, header_bytes - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(MalformedMessage):
        decode_tensors(payload, _GOOD_SPECS, FP32)


@given(garbage=st.binary(max_size=400))
def test_garbage_is_refused_and_nothing_else_happens(garbage: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_tensors(garbage, _GOOD_SPECS, FP32)


def _entry(begin: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


_GOOD = {"a": _entry(0, 24, [2, 3]), "b": _entry(24, 424, [100])}


def _hostile(header: bytes) -> bytes:
    """A payload of exactly the expected size that begins with `header`, so that only the header can be refused."""
    total = payload_size(_GOOD_SPECS, FP32)
    content = len(header).to_bytes(8, "little") + header
    return (content + bytes(total))[:total]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        pytest.param({**_GOOD, "a": _entry(0, 24, [3, 2])}, r"a has shape \[3, 2\], expected \[2, 3\]", id="shape"),
        pytest.param({**_GOOD, "a": _entry(0, 24, [6])}, r"a has shape", id="rank"),
        pytest.param({**_GOOD, "a": _entry(0, 24, [2**62, 2**62])}, r"a has shape", id="huge"),
        pytest.param({**_GOOD, "a": _entry(0, 24, [-2, -3])}, r"a has shape", id="negative"),
        pytest.param({**_GOOD, "a": _entry(0, 24, [2, 3], "F64")}, r"a has dtype 'F64', expected F32", id="dtype"),
        pytest.param({**_GOOD, "a": _entry(0, 24, [2, 3], "F" * 99)}, r"a has dtype '.{0,70}\.\.\.", id="long dtype"),
        pytest.param({"a": _GOOD["a"]}, "b is missing", id="missing"),
        pytest.param({**_GOOD, "a": 3}, "a is missing", id="not an entry"),
        pytest.param({**_GOOD, "c": _entry(0, 0, [0])}, "'c' was not asked for", id="unexpected"),
        pytest.param({**_GOOD, "__metadata__": {}}, "'__metadata__' was not asked for", id="metadata"),
        pytest.param({**_GOOD, "b": _entry(0, 400, [100])}, "not canonical", id="overlap"),
        pytest.param({**_GOOD, "b": _entry(28, 428, [100])}, "not canonical", id="gap"),
        pytest.param({"b": _entry(24, 424, [100]), "a": _entry(0, 24, [2, 3])}, "not canonical", id="order"),
        pytest.param([], "not a JSON object", id="list"),
    ],
)
@pytest.mark.usefixtures("no_allocation")
def test_hostile_headers_are_refused_before_allocation_with_the_reason(header: Any, reason: str) -> None:
    with pytest.raises(MalformedMessage, match=reason):
        decode_tensors(_hostile(json.dumps(header, separators=(",", ":")).encode()), _GOOD_SPECS, FP32)


@pytest.mark.parametrize("claimed", [0, 1, 2**31, 2**63, 2**64 - 1])
@pytest.mark.usefixtures("no_allocation")
def test_any_claimed_header_length_is_refused(claimed: int) -> None:
    payload = bytearray(_hostile(b""))
    payload[:8] = claimed.to_bytes(8, "little")
    with pytest.raises(MalformedMessage):
        decode_tensors(payload, _GOOD_SPECS, FP32)


@pytest.mark.usefixtures("no_allocation")
def test_deeply_nested_json_is_refused() -> None:
    specs = [TensorSpec("a", (100_000,))]
    total = payload_size(specs, FP32)
    header = b"[" * 300_000
    payload = (len(header).to_bytes(8, "little") + header).ljust(total, b"\0")
    with pytest.raises(MalformedMessage, match="not JSON"):
        decode_tensors(payload, specs, FP32)


def test_the_other_codec_is_refused() -> None:
    payload = encode_tensors(_tensors(_GOOD_SPECS), BF16)
    with pytest.raises(MalformedMessage, match="bytes, expected"):
        decode_tensors(payload, _GOOD_SPECS, FP32)


@pytest.mark.parametrize("name", ["", "__metadata__", "a\nb", "\ud800"])
def test_specs_refuse_names_that_no_header_can_hold(name: str) -> None:
    with pytest.raises(LocalError, match="not a tensor name"):
        TensorSpec(name, (1,))


@pytest.mark.parametrize("shape", [(-1,), (1,) * 9])
def test_specs_refuse_impossible_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(LocalError, match="not a shape"):
        TensorSpec("a", shape)


def test_a_name_expected_twice_is_our_bug() -> None:
    with pytest.raises(LocalError, match="twice"):
        payload_size([TensorSpec("a", (1,)), TensorSpec("a", (2,))], FP32)


def test_large_payload_sizes_are_exact_integers() -> None:
    spec = TensorSpec("a", (2**20, 2**20))
    assert payload_size([spec], BF16) - payload_size([TensorSpec("a", (0, 2**20))], BF16) in range(2**41, 2**41 + 64)

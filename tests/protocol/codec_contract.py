"""What every codec must do. A test of a codec derives a class from `CodecContract` and gives it the codec."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from protocol.codecs import GRANULE, Codec
from protocol.errors import MalformedMessage
from protocol.ids import TRUNK, column_block
from protocol.specs import TensorSpec
from protocol.submission import decode_submission, encode_submission, encoded_block
from protocol.tensor_headers import payload_size
from protocol.tensors import decode_tensors, encode_parts, encode_tensors

SHAPES = ((), (1,), (7,), (64,), (3, 5), (2, 3, 4), (128, 33), (0,), (0, 4))
BYTES_AN_ELEMENT = 8
"""Of any tensor that a decoder makes on its way: an index of each value is the most."""


class CodecContract:
    """Tests in terms of `codec`, a fixture that the derived class has."""

    agreement = 0.5
    """Cosine of the angle between normal values and what comes back of them, at least; a sparse codec says less."""
    rounds_to_make_up = 16
    """Encodings of one tensor of 64 values, in whose mean `error_left` of one encoding's error is left at most."""
    error_left = 0.5

    @pytest.fixture(params=SHAPES, ids=str)
    def spec(self, request: pytest.FixtureRequest) -> TensorSpec:
        return TensorSpec("t", request.param)

    def test_what_it_writes_is_known_beforehand(self, codec: Codec, spec: TensorSpec) -> None:
        """Also asserts dtypes and shapes: `encode_tensors` does, against `wire_specs`."""
        for scale in (0.0, 1e-20, 1.0, 1e20):
            assert len(encode_tensors({"t": scale * values(spec)}, codec)) == payload_size([spec], codec)
        parts = [wire.part for wire in codec.wire_specs(spec)]
        assert len(set(parts)) == len(parts)

    def test_its_bits_are_what_a_large_tensor_takes(self, codec: Codec) -> None:
        large = TensorSpec("t", (4096, 4096))
        empty = payload_size([TensorSpec("t", (0, 4))], codec)
        assert 8 * (payload_size([large], codec) - empty) / large.elements == pytest.approx(
            codec.bits_per_parameter, rel=1e-3
        )

    def test_pieces_are_contiguous_detached_and_in_main_memory(self, codec: Codec) -> None:
        parameter = values(TensorSpec("t", (6, 4))).requires_grad_()
        for part in codec.encode(parameter.T).parts:
            assert part.is_contiguous()
            assert not part.requires_grad
            assert part.device.type == "cpu"

    def test_it_comes_back_in_fp32_and_its_own_shape(self, codec: Codec, spec: TensorSpec) -> None:
        tensor = values(spec)
        decoded = coded(codec, tensor, spec)
        assert (decoded.dtype, tuple(decoded.shape)) == (torch.float32, spec.shape)
        assert decoded.is_contiguous()

    def test_a_span_is_what_the_whole_holds_there(self, codec: Codec) -> None:
        """Bit for bit, from the first granule to a last one that is cut short."""
        spec = TensorSpec("t", (3, GRANULE - 7))
        parts = codec.encode(values(spec)).parts
        whole = codec.decode(parts, spec).reshape(-1)
        for start in range(0, spec.elements, GRANULE):
            stop = min(start + GRANULE, spec.elements)
            assert torch.equal(codec.decode_span(parts, spec, start, stop), whole[start:stop])
        assert torch.equal(codec.decode_span(parts, spec, 0, spec.elements), whole)

    def test_it_points_the_same_way(self, codec: Codec) -> None:
        """A quantised or thinned pseudo-gradient is still one: it agrees with the true one more than with noise."""
        spec = TensorSpec("t", (128, 33))
        tensor = values(spec)
        decoded = coded(codec, tensor, spec)
        assert float((decoded * tensor).sum()) > self.agreement * float(decoded.norm() * tensor.norm())
        assert 0.25 < float(decoded.norm() / tensor.norm()) < 1.25

    def test_nothing_comes_back_as_nothing(self, codec: Codec, spec: TensorSpec) -> None:
        assert not coded(codec, torch.zeros(spec.shape), spec).any()

    def test_a_value_that_is_not_finite_is_seen_or_refused(self, codec: Codec) -> None:
        """Never hidden: screening must be able to see it, or the worker to say that there is no encoding."""
        spec = TensorSpec("t", (8,))
        for bad in (math.nan, math.inf, -math.inf):
            tensor = values(spec)
            tensor[3] = bad
            try:
                decoded = coded(codec, tensor, spec)
            except MalformedMessage:
                continue
            assert not bool(decoded.isfinite().all())

    def test_the_same_arguments_give_the_same_bits(self, codec: Codec, spec: TensorSpec) -> None:
        tensor = values(spec)
        before, state = tensor.clone(), codec.encode(tensor).state
        kept = None if state is None else state.clone()
        for given in (None, state):
            first, second = codec.encode(tensor, given), codec.encode(tensor, given)
            assert [part.tolist() for part in first.parts] == [part.tolist() for part in second.parts]
            assert (first.state is None) == (second.state is None) == (state is None)
            if codec.has_state and given is not None and first.state is not None:
                wanted = tensor + given * codec.state_decay
                assert torch.equal(first.state, wanted - codec.decode(first.parts, spec))
        assert torch.equal(tensor, before)
        assert state is None or kept is None or torch.equal(state, kept)

    def test_a_state_makes_up_for_what_was_lost(self, codec: Codec) -> None:
        """Where a codec keeps one: the mean of many encodings of one tensor comes nearer to it than any of them."""
        spec = TensorSpec("t", (64,))
        tensor = values(spec)
        states: dict[str, Tensor] = {}
        decoded = []
        for _ in range(self.rounds_to_make_up):
            payload = b"".join(encode_parts({"t": tensor}, codec, states))
            decoded.append(decode_tensors(payload, [spec], codec)["t"])
        assert (codec.encode(tensor).state is not None) == codec.has_state
        if not codec.has_state:
            assert not states
            assert all(torch.equal(one, decoded[0]) for one in decoded)
            return
        assert states["t"].shape == tensor.shape
        error = float((torch.stack(decoded).mean(0) - tensor).norm())
        assert error < self.error_left * float((decoded[0] - tensor).norm())

    def test_hostile_content_is_refused_or_read_and_costs_no_more_than_its_shape(self, codec: Codec) -> None:
        spec = TensorSpec("t", (32, 16))
        payload = bytearray(encode_tensors({"t": values(spec)}, codec))
        content_bytes = payload_size([spec], codec) - payload_size_of_header(spec, codec)
        for seed in range(50):
            noise = torch.randint(0, 256, (content_bytes,), generator=torch.Generator().manual_seed(seed))
            content = bytes(noise.tolist()) if seed > 1 else bytes([255 * seed]) * content_bytes
            payload[-content_bytes:] = content
            with Largest() as largest:
                try:
                    decoded = decode_tensors(payload, [spec], codec)["t"]
                except MalformedMessage:
                    continue
                assert tuple(decoded.shape) == spec.shape
            assert 4 * spec.elements <= largest.bytes <= BYTES_AN_ELEMENT * spec.elements

    def test_a_submission_is_read_whole_and_by_block(self, codec: Codec) -> None:
        """Names that sort across each other, and a block whose name begins like another's."""
        blocks = (TRUNK, column_block(1), column_block(10))
        gradient = {
            block: {name: values(TensorSpec(name, shape), seed=seed) for name, shape in (("a.b", (5, 3)), ("z", (2,)))}
            for seed, block in enumerate(blocks)
        }
        specs = [
            TensorSpec(f"{block}/{name}", tuple(tensor.shape))
            for block, tensors in gradient.items()
            for name, tensor in tensors.items()
        ]
        payload = encode_submission(gradient, codec)
        whole = decode_submission(payload, specs, codec, blocks)
        assert list(whole) == list(blocks)
        for block in blocks:
            alone = encoded_block(memoryview(bytearray(payload)), specs, codec, block)
            assert alone.keys() == whole[block].keys() == gradient[block].keys()
            assert all(torch.equal(alone[name].whole(), whole[block][name]) for name in alone)
        with pytest.raises(MalformedMessage):
            encoded_block(memoryview(bytearray(payload[:-1])), specs, codec, TRUNK)


class Largest(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                self.bytes = max(self.bytes, one.untyped_storage().nbytes())
        return made


def values(spec: TensorSpec, seed: int = 0) -> Tensor:
    return torch.randn(spec.shape, generator=torch.Generator().manual_seed(seed))


def coded(codec: Codec, tensor: Tensor, spec: TensorSpec) -> Tensor:
    return decode_tensors(encode_tensors({spec.name: tensor}, codec), [spec], codec)[spec.name]


def payload_size_of_header(spec: TensorSpec, codec: Codec) -> int:
    return len(bytes(next(iter(encode_parts({spec.name: values(spec)}, codec)))))

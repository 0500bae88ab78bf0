"""A codec that the product does not have: written here, entered in the table, and a run can name it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from coordinator.settings import RunSettings
from protocol.codecs import CODECS, Codec, codec_named
from protocol.errors import LocalError
from protocol.specs import Encoded, TensorSpec, WireSpec
from protocol.tensors import encode_tensors
from tests.protocol.codec_contract import CodecContract, values

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = 127


@dataclasses.dataclass(frozen=True, slots=True)
class EightBits:
    """Each tensor in 255 levels of its largest value; what rounding loses is added to the next encoding."""

    name: str = "eight_bits"
    bits_per_parameter: float = 8.0
    has_state: bool = True
    state_decay: float = 1.0

    def wire_specs(self, spec: TensorSpec) -> tuple[WireSpec, ...]:
        return WireSpec("F32", (1,), part="scale"), WireSpec("I8", spec.shape, part="levels")

    def encode(self, tensor: Tensor, state: Tensor | None = None) -> Encoded:
        import torch

        wanted = tensor.detach().to(device="cpu", dtype=torch.float32)
        wanted = wanted if state is None else wanted + state
        scale = (wanted.abs().amax() if wanted.numel() else torch.zeros(())).reshape(1) / LEVELS
        # a scale that is not finite makes every value that is decoded with it so
        levels = torch.nan_to_num(wanted / scale).round().clamp(-LEVELS, LEVELS).to(torch.int8).contiguous()
        levels = levels.reshape(tensor.shape)  # dividing by one number in a row of its own gives a scalar a dimension
        return Encoded((scale, levels), state=wanted - levels.to(torch.float32) * scale.reshape(()))

    def decode(self, parts: tuple[Tensor, ...], spec: TensorSpec) -> Tensor:
        import torch

        del spec
        scale, levels = parts
        return levels.to(torch.float32) * scale.reshape(())

    def decode_span(self, parts: tuple[Tensor, ...], spec: TensorSpec, start: int, stop: int) -> Tensor:
        return self.decode((parts[0], parts[1].reshape(-1)[start:stop]), spec)


class Liar(EightBits):
    """Writes something else than it says beforehand."""

    def wire_specs(self, spec: TensorSpec) -> tuple[WireSpec, ...]:
        return tuple(reversed(EightBits.wire_specs(self, spec)))


def test_what_a_codec_did_not_promise_never_leaves_the_worker() -> None:
    with pytest.raises(LocalError, match="codec eight_bits wrote t as"):
        encode_tensors({"t": values(TensorSpec("t", (8,)))}, Liar())


class TestEightBits(CodecContract):
    @pytest.fixture
    def codec(self) -> Codec:
        return EightBits()


def test_a_run_may_name_it_once_it_is_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="codec"):
        RunSettings(preset="tiny", codec="eight_bits")
    monkeypatch.setitem(CODECS, "eight_bits", EightBits())
    settings = RunSettings(preset="tiny", codec="eight_bits")
    assert isinstance(codec_named(settings.codec), EightBits)
    assert RunSettings.from_toml(settings.to_toml(), "settings.toml") == settings

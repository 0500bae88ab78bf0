"""A block where it lies is what decoding gives, takes no memory of its own, and outlives its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from protocol.codecs import FP32, codec_named
from protocol.errors import MalformedMessage
from protocol.specs import TensorSpec
from protocol.tensors import decode_tensors, encode_tensors
from worker.train.mapped import mapped_block

TENSORS = {"b": torch.arange(12.0).view(3, 4), "a": torch.randn(300, generator=torch.Generator().manual_seed(1))}
SPECS = [TensorSpec(name, tuple(tensor.shape)) for name, tensor in TENSORS.items()]


@pytest.mark.parametrize("name", ["fp32", "bf16", "int8"])
def test_it_is_what_decoding_gives(tmp_path: Path, name: str) -> None:
    codec, path = codec_named(name), tmp_path / "block"
    path.write_bytes(encode_tensors(TENSORS, codec))
    block, expected = mapped_block(path, SPECS, codec), decode_tensors(path, SPECS, codec)
    assert set(block) == set(TENSORS)
    assert len(block) == 2
    path.unlink()
    assert all(torch.equal(block[one], expected[one]) for one in TENSORS)


def test_in_fp32_it_is_the_file_itself(tmp_path: Path) -> None:
    path = tmp_path / "block"
    path.write_bytes(encode_tensors(TENSORS, FP32))
    block = mapped_block(path, SPECS, FP32)
    assert block["b"].data_ptr() == block["b"].data_ptr(), "asked for twice it is not there twice"
    with path.open("r+b") as file:
        file.seek(-4, 2)
        file.write(torch.tensor([77.0]).numpy().tobytes())
    assert float(block["b"][-1, -1]) == 77.0, "it is read when it is asked for"


@pytest.mark.parametrize("content", [b"", b"\0" * 100])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "block"
    path.write_bytes(content)
    with pytest.raises(MalformedMessage):
        mapped_block(path, SPECS, FP32)

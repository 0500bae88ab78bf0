"""Headers of safetensors files that cannot be believed, and files that fail while they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import moe.stored
from moe.stored import MAX_HEADER_BYTES, stored_tensors
from protocol.errors import ConfigError


def file_of(path: Path, entries: Any, values: bytes = b"", length: int | None = None) -> Path:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + values)
    return path


def entry(shape: list[Any], begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_what_the_library_writes_is_read_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moe.stored, "SPAN", 7)
    given = {
        "a": torch.randn(5, 3),
        "b": torch.randn(4, 2, 3).to(torch.bfloat16),
        "c": torch.randn(9).to(torch.float16),
        "d": torch.tensor(2.5),
        "e": torch.empty(0, 3),
        "f": torch.arange(6, dtype=torch.uint8).view(2, 3),
        "g": torch.randn(4).to(torch.float8_e4m3fn),
    }
    save_file(given, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found, header_bytes = stored_tensors(tmp_path / "x.safetensors")
    assert found.keys() == load_file(tmp_path / "x.safetensors").keys()
    for name, tensor in given.items():
        stored = found[name]
        spans = list(stored.spans(0, stored.elements))
        assert all(span.numel() <= 7 for span in spans)
        assert torch.equal(torch.cat([torch.empty(0), *spans]), tensor.to(torch.float32).reshape(-1))
    assert torch.equal(found["b"].rows(1, 3), given["b"][1:3])
    assert torch.equal(found["a"].read(4, 11), given["a"].reshape(-1)[4:11])
    assert (
        header_bytes + sum(one.payload_bytes for one in found.values()) == (tmp_path / "x.safetensors").stat().st_size
    )


@pytest.mark.parametrize(
    ("entries", "values", "says"),
    [
        ({"a": entry([2], 0, 8), "b": entry([2], 8, 16)}, 8, "tensors end at byte"),
        ({"a": entry([2], 0, 8)}, 16, "tensors end at byte"),
        ({"a": entry([2], 1 << 60, (1 << 60) + 8)}, 8, "does not begin where"),
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12, "does not begin where"),
        ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, 8, "does not begin where"),
        ({"a": entry([2], 4, 12)}, 12, "does not begin where"),
        ({"a": entry([1 << 40, 1 << 40], 0, 8)}, 8, "its place has 8"),
        ({"a": entry([2], 8, 0)}, 8, "its place has -8"),
        ({"a": entry([-2, -1], 0, 8)}, 8, "no shape or place"),
        ({"a": entry([True, 2], 0, 8)}, 8, "no shape or place"),
        ({"a": entry([2.0], 0, 8)}, 8, "no shape or place"),
        ({"a": entry([1] * 9, 0, 4)}, 4, "no shape or place"),
        ({"a": {**entry([2], 0, 8), "shape": {"0": 2}}}, 8, "no shape or place"),
        ({"a": entry([2], "0", "8")}, 8, "no shape or place"),
        ({"a": entry([2], 0, 8, "F4")}, 8, "kept as 'F4', which is not read"),
        ({"a": entry([2], 0, 8, ["F32"])}, 8, "which is not read"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "lacks its type, shape or place"),
        ({"a": [2]}, 8, "lacks its type, shape or place"),
        ({"a": {**entry([2], 0, 8), "data_offsets": 3}}, 8, "lacks its type, shape or place"),
        ([1, 2], 0, "not a JSON object"),
        (b"{" * 50_000, 0, "not JSON"),
        (b"\xff\xfe", 0, "not JSON"),
        (b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "a": 3}', 0, "a name twice"),
    ],
)
def test_a_header_that_lies_is_refused_in_one_sentence(tmp_path: Path, entries: Any, values: int, says: str) -> None:
    path = file_of(tmp_path / "x.safetensors", entries, bytes(values))
    with pytest.raises(ConfigError, match=says) as refused:
        stored_tensors(path)
    assert "cut short: fetch it again" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("length", [1 << 63, MAX_HEADER_BYTES + 1, 100])
def test_a_header_that_claims_more_than_the_file_has_is_not_read(tmp_path: Path, length: int) -> None:
    with pytest.raises(ConfigError, match=f"claims {length} bytes"):
        stored_tensors(file_of(tmp_path / "x.safetensors", {}, b"", length))


@pytest.mark.parametrize("kept_bytes", [0, 3, 8, 40])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, kept_bytes: int) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(ConfigError, match="cut short"):
        stored_tensors(path)


def test_a_file_that_shrinks_or_goes_while_it_is_read_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(100)}, path)
    tensor = stored_tensors(path)[0]["a"]
    with path.open("r+b") as file:
        file.truncate(tensor.begin + 40)
    assert tensor.read(0, 10).sum() == 10
    with pytest.raises(ConfigError, match="became shorter while it was read"):
        tensor.read(0, 100)
    path.unlink()
    with pytest.raises(ConfigError, match=r"cannot read .*x\.safetensors: no such file"):
        tensor.read(0, 1)

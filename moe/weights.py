"""The weight files of a checkpoint: which are read at all, and what their headers say.

Decides in which type a checkpoint is kept. Reads only. Holds always: nothing is unpickled, and no file outside of the
folder is named by it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from moe.stored import StoredTensor, stored_tensors
from protocol.errors import ConfigError

WEIGHTS_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
EMBEDDING: Final = "model.embed_tokens.weight"
HEAD: Final = "lm_head.weight"

DTYPES: Final[Mapping[str, torch.dtype]] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What a checkpoint can be kept in, by the names that people choose by."""
BY_HEADER: Final[Mapping[str, str]] = {"F32": "fp32", "BF16": "bf16", "F16": "fp16", "F64": "fp32"}
"""By the types of a header; what is kept in any other is no weight that was meant to be trained on."""
_BY_CONFIG: Final = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp32"}

_MAX_INDEX_BYTES: Final = 256 << 20


def checked_dtype(name: str) -> torch.dtype:
    """The type that a person named; ConfigError when a checkpoint cannot be kept in it."""
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r:.40}: expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


@dataclass(frozen=True, slots=True)
class Weights:
    """Where the tensors of a checkpoint lie. `open_weights` is the way to get one."""

    tensors: Mapping[str, StoredTensor]
    header_bytes: int
    """What was read of the files for this."""

    @property
    def payload_bytes(self) -> int:
        """Bytes of all values."""
        return sum(tensor.payload_bytes for tensor in self.tensors.values())

    def dtype(self, named: object) -> str:
        """fp32, bf16 or fp16: what the configuration says (`named`), else the commonest of the files."""
        text = str(named).removeprefix("torch.")
        counted = Counter(BY_HEADER[one.dtype] for one in self.tensors.values() if one.dtype in BY_HEADER)
        return _BY_CONFIG.get(text) or (counted.most_common(1)[0][0] if counted else "bf16")


def open_weights(folder: Path) -> Weights:
    """The headers of every weight file in `folder`; ConfigError says why they cannot be used.

    Where two files have a tensor of one name, the later file's counts, as for `transformers`.
    """
    tensors: dict[str, StoredTensor] = {}
    header_bytes = 0
    for path in _weight_files(folder):
        found, read_bytes = stored_tensors(path)
        tensors |= found
        header_bytes += read_bytes
    if not tensors:
        raise ConfigError(f"the weight files in {folder} hold no tensors")
    return Weights(tensors, header_bytes)


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    index = folder / INDEX_FILE
    if not index.is_file():
        others = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".gguf"))
        found = f" but {others[0]}, a format that is not read" if others else ""
        raise ConfigError(
            f"{folder} has no .safetensors file ({WEIGHTS_FILE}, or {INDEX_FILE}){found}: open the model with "
            "from_pretrained of transformers, save_pretrained it into a folder, and name that"
        )
    names = sorted(set(_index(index).values()))
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise ConfigError(f"{index} names {name!r:.80}, which lies outside of the folder: it is not followed")
        if not (folder / name).is_file():
            raise ConfigError(f"{index} names {name}, which is not in the folder: fetch the missing file")
    return [folder / name for name in names]


def _index(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            found: Any = json.loads(file.read(_MAX_INDEX_BYTES))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is not an index of weight files: fetch it again") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ConfigError(f"{path} is not an index of weight files: fetch it again")
    return found

"""The weight files of a checkpoint, looked at before `transformers` loads them: headers, and what is said twice.

Decides which files are read at all, in which type a checkpoint is kept, and whether its embeddings are really tied.
Reads only. Holds always: nothing is unpickled, no file outside of the folder is named by it, and what is compared is
read a few rows at a time.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from protocol.errors import ConfigError

WEIGHTS_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
EMBEDDING: Final = "model.embed_tokens.weight"
HEAD: Final = "lm_head.weight"

DTYPES: Final[Mapping[str, torch.dtype]] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What a checkpoint can be kept in, by the names that people choose by."""
_BY_HEADER: Final = {"F32": "fp32", "BF16": "bf16", "F16": "fp16", "F64": "fp32"}
_BY_CONFIG: Final = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp32"}

_MAX_INDEX_BYTES: Final = 256 << 20
_ROWS: Final = 4096
"""Of an embedding, compared at a time: 64 MiB of the widest in fp32."""


def checked_dtype(name: str) -> torch.dtype:
    """The type that a person named; ConfigError when a checkpoint cannot be kept in it."""
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r:.40}: expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


@dataclass(frozen=True, slots=True)
class Weights:
    """Where the tensors of a checkpoint lie. `open_weights` is the way to get one."""

    files: Mapping[str, Path]
    """Tensor to file."""
    stored: Mapping[str, str]
    """Tensor to type, as the files' headers have it."""

    def dtype(self, named: object) -> str:
        """fp32, bf16 or fp16: what the configuration says (`named`), else the commonest of the files."""
        text = str(named).removeprefix("torch.")
        return _BY_CONFIG.get(text) or _BY_HEADER[Counter(self.stored.values()).most_common(1)[0][0]]

    def has_head_of_its_own(self) -> bool:
        """Whether the files hold an output head with other values than the embedding's."""
        return EMBEDDING in self.files and HEAD in self.files and not self._equal(EMBEDDING, HEAD)

    def _equal(self, one: str, other: str) -> bool:
        with safe_open(self.files[one], "pt") as first, safe_open(self.files[other], "pt") as second:
            a, b = first.get_slice(one), second.get_slice(other)
            if a.get_shape() != b.get_shape():
                return False
            return all(
                torch.equal(a[row : row + _ROWS].float(), b[row : row + _ROWS].float())
                for row in range(0, a.get_shape()[0], _ROWS)
            )


def open_weights(folder: Path) -> Weights:
    """The headers of every weight file in `folder`; ConfigError says why they cannot be used."""
    files: dict[str, Path] = {}
    stored: dict[str, str] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (it is not a mapping)
                    files[name], stored[name] = path, opened.get_slice(name).get_dtype()
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"{path} cannot be read as safetensors, it may be cut short: fetch it again ({error})"
            ) from error
    if not files:
        raise ConfigError(f"the weight files in {folder} hold no tensors")
    strange = next((name for name, kind in stored.items() if kind not in (*_BY_HEADER, "I64")), None)
    if strange is not None:
        raise ConfigError(
            f"the weights in {folder} are quantised ({strange} is kept as {stored[strange]}): training starts from "
            "fp32, bf16 or fp16 weights, so take the checkpoint that this one was made from"
        )
    return Weights(files, stored)


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

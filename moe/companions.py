"""What stands beside the weights in a checkpoint and comes back with every export: tokenizer, template, generation.

Decides which files are kept, a closed list of names with a bound for each, and what of them is written. Holds always:
nothing in them is executed or unpickled here; what would name code, or a path of the machine that wrote them, is left
out; a folder of companions is there whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from moe.tokenizer import MAX_TOKENIZER_BYTES, TOKENIZER_FILE
from protocol.errors import ConfigError

COMPANIONS_FOLDER: Final = "tokenizer"
"""Where a run, and a dataset, keep them."""
TOKENIZER_CONFIG_FILE: Final = "tokenizer_config.json"
GENERATION_FILE: Final = "generation_config.json"

_MEBIBYTE: Final = 1 << 20
_LIMITS_BYTES: Final[Mapping[str, int]] = {
    TOKENIZER_FILE: MAX_TOKENIZER_BYTES,
    TOKENIZER_CONFIG_FILE: 16 * _MEBIBYTE,  # some list each of 100,000 added tokens
    "special_tokens_map.json": 4 * _MEBIBYTE,
    "added_tokens.json": 16 * _MEBIBYTE,
    "chat_template.jinja": _MEBIBYTE,
    "chat_template.json": _MEBIBYTE,
    GENERATION_FILE: _MEBIBYTE,
    # The same vocabulary in older forms, which other programs read.
    "vocab.json": 64 * _MEBIBYTE,
    "merges.txt": 64 * _MEBIBYTE,
    "tokenizer.model": 64 * _MEBIBYTE,
}
_JSON_OBJECTS: Final = (TOKENIZER_CONFIG_FILE, "special_tokens_map.json", "added_tokens.json", GENERATION_FILE)
_NAMES_CODE: Final = frozenset({"auto_map", "custom_pipelines", "custom_generate", "trust_remote_code"})
_NAMES_A_PATH: Final = frozenset(
    {"name_or_path", "_name_or_path", "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file",
     "added_tokens_file", "chat_template_file", "cache_dir"}
)  # fmt: skip

Companions = Mapping[str, bytes]
"""File name to content."""


def read_companions(folder: Path) -> dict[str, bytes]:
    """Those of the known files that `folder` holds; ConfigError names one that cannot be read or is no such file."""
    found: dict[str, bytes] = {}
    for name, limit_bytes in _LIMITS_BYTES.items():
        path = folder / name
        if not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                content = file.read(limit_bytes + 1)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        if len(content) > limit_bytes:
            raise ConfigError(f"{path} has more than {limit_bytes >> 20} MiB, which no such file needs")
        found[name] = _without_code(content, name, path) if name in _JSON_OBJECTS else content
    return found


def _without_code(content: bytes, name: str, path: Path) -> bytes:
    """The object without keys that name code or places; untouched where there are none."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: mend it, or take it out of the folder") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not an object in JSON: mend it, or take it out of the folder")
    kept = {key: value for key, value in values.items() if key not in _NAMES_CODE | _NAMES_A_PATH}
    if name == TOKENIZER_CONFIG_FILE and _NAMES_CODE & set(values):
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"  # what it named stands in code that is not kept
    return content if kept == values else _json(kept)


def companions_of(checkpoint: Path | None, of_data: Companions) -> dict[str, bytes]:
    """What a model that begins with `checkpoint` carries: its own; the data's where it has no tokenizer."""
    own = {} if checkpoint is None else read_companions(checkpoint)
    return own if TOKENIZER_FILE in own else {**of_data, **own}


def end_of_text(companions: Companions) -> str | None:
    """The token that ends a text, by what stands beside the vocabulary."""
    for name in (TOKENIZER_CONFIG_FILE, "special_tokens_map.json"):
        named = json.loads(companions.get(name, b"{}")).get("eos_token")
        token = named.get("content") if isinstance(named, dict) else named
        if isinstance(token, str):
            return token
    return None


def write_companions(companions: Companions, folder: Path) -> None:
    """Write the files into `folder`, which is made if need be, each of them durable."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in companions.items():
        if name not in _LIMITS_BYTES:
            raise ConfigError(f"{name} is not among the files that are kept of a checkpoint")
        with (folder / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def export_companions(companions: Companions, values: Mapping[str, Any]) -> dict[str, bytes]:
    """The files that an export of the model `values` (its configuration) carries: what is missing is made."""
    tokenizer_json = companions[TOKENIZER_FILE]
    made = {TOKENIZER_CONFIG_FILE: _json(_tokenizer_config(tokenizer_json, values))}
    special = {key: values[key] for key in ("pad_token_id", "bos_token_id", "eos_token_id") if values[key] is not None}
    made[GENERATION_FILE] = _json(special)
    return {**made, **companions}


def _tokenizer_config(tokenizer_json: bytes, values: Mapping[str, Any]) -> dict[str, Any]:
    """What lets AutoTokenizer open a bare tokenizer.json: its special tokens are those that the model names by id."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": values["max_position_embeddings"],
    }
    document = json.loads(tokenizer_json)
    content = {token["id"]: token["content"] for token in document.get("added_tokens") or []}
    for role in ("pad", "bos", "eos"):
        named = values[f"{role}_token_id"]
        first = next(iter(named), None) if isinstance(named, list) else named
        own = f"<|{role}|>"  # the byte tokenizer's, whatever the model's configuration leaves unsaid
        if first in content or own in content.values():
            config[f"{role}_token"] = content.get(first, own)
    unknown = document["model"].get("unk_token")
    if isinstance(unknown, str):
        config["unk_token"] = unknown
    return config


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode("utf-8", errors="surrogatepass")

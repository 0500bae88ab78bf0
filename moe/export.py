"""A run's model as an ordinary Hugging Face folder, and such a folder as the start of a run.

Decides what an exported checkpoint consists of; writes only the folder it is given. Holds always: the folder appears
complete or not at all; `AutoModelForCausalLM` and `AutoTokenizer` open it with nothing of this project installed;
nothing is unpickled and no code from a checkpoint runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from moe.blocks import Blocks, slice_blocks
from moe.config import config_from_json, config_to_json
from moe.full import full_model
from moe.layout import FROZEN, Layout, layout
from moe.skeleton import model_class
from moe.tokenizer import byte_tokenizer_json, tokenizer_config
from protocol.errors import ConfigError
from protocol.folders import Kind, filled_whole, require_fillable
from protocol.ids import BlockId

# Loading and saving are steps of commands that draw their own progress and say what is wrong in one sentence.
_logging: Any = transformers_logging
_logging.disable_progress_bar()
_logging.set_verbosity_error()

CHECKPOINT_KIND = Kind(
    completed_by="config.json",
    entries=(
        "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*",
        "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.*", "merges.txt",
    ),
    ignored=frozenset({".partial"}),
)  # fmt: skip
"""Without `config.json` nothing opens a folder as a checkpoint. `.partial` is where a warm start keeps its progress."""


def export_checkpoint(
    blocks: Mapping[BlockId, Mapping[str, Tensor]],
    layout: Layout,
    folder: Path,
    *,
    tokenizer_json: bytes | None = None,
    replace: bool = False,
) -> None:
    """Write the whole model and its tokenizer (bytes by default) to `folder`, which is new or empty.

    `replace` allows a former checkpoint there; it stays until the new one is whole. Nothing else is ever replaced.
    """
    require_room(folder, replace=replace)
    tokenizer_json = byte_tokenizer_json() if tokenizer_json is None else tokenizer_json
    values = layout.config_json
    _check_vocabulary(tokenizer_json, values["vocab_size"])
    model = full_model(layout, blocks)
    special = {key: values[key] for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    model.generation_config = GenerationConfig.from_dict(special)
    with filled_whole(folder, CHECKPOINT_KIND, replace=replace) as staging:
        model.save_pretrained(staging)
        (staging / "tokenizer.json").write_bytes(tokenizer_json)
        settings = tokenizer_config(tokenizer_json, max_positions=values["max_position_embeddings"])
        (staging / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def require_room(folder: Path, *, replace: bool = False) -> None:
    """ConfigError unless a checkpoint may be written to `folder`: said before a model is loaded for it."""
    is_replaceable = not replace and (folder / CHECKPOINT_KIND.completed_by).is_file()
    way_out = "give a new or an empty folder" + (", or replace the checkpoint there with --force" * is_replaceable)
    require_fillable(folder, CHECKPOINT_KIND, replace=replace, way_out=way_out)


def _check_vocabulary(tokenizer_json: bytes, vocab_size: int) -> None:
    document = json.loads(tokenizer_json)
    vocabulary = document["model"]["vocab"]
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    highest = max([*ids, *(token["id"] for token in document.get("added_tokens", []))], default=-1)
    if highest >= vocab_size:
        raise ConfigError(f"the tokenizer has id {highest}, outside the model's vocabulary of {vocab_size}")


def import_checkpoint(folder: Path, residency: str = FROZEN) -> tuple[PreTrainedConfig, Blocks]:
    """Configuration and fp32 blocks of a Hugging Face checkpoint on disk; ConfigError says why it cannot be used."""
    config = checkpoint_config(folder)
    return config, slice_blocks(open_checkpoint(folder, config).state_dict(), layout(config, residency))


def checkpoint_config(folder: Path) -> PreTrainedConfig:
    """Configuration of a checkpoint on disk; ConfigError says why it cannot be used. Reads no weights."""
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is not a checkpoint folder: it has no config.json")
    if not list(folder.glob("*.safetensors")):
        raise ConfigError(f"{folder} has no .safetensors file; other weight formats are not read")
    try:
        found = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{folder}/config.json cannot be read: {error}") from error
    return config_from_json(config_to_json(found))


def open_checkpoint(folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """The whole model of a checkpoint whose configuration was read, fp32, on the CPU, in evaluation mode."""
    try:
        opened: Any = model_class(config.model_type).from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # named below instead
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"the weights in {folder} cannot be read: {error}") from error
    model, report = opened
    wrong = {
        key: sorted(report[key])[:3] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[key]
    }
    if wrong:
        raise ConfigError(f"the weights in {folder} do not fit its configuration: {wrong}")
    opened_model: PreTrainedModel = model
    opened_model.train(False)
    return opened_model


def sample(folder: Path, prompt: str, max_new_tokens: int, seed: int, *, temperature: float = 0.8) -> str:
    """Text that the checkpoint in `folder` writes after `prompt`, the same for the same seed. 0 is greedy."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{folder} cannot be opened as a checkpoint: {error}") from error
    given = tokenizer(prompt or "\n", return_tensors="pt")
    chance = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        if not model(input_ids=given["input_ids"]).logits.isfinite().all():
            raise ConfigError(f"the model in {folder} cannot write: what it computes is not finite")
        written = model.generate(
            input_ids=given["input_ids"],
            attention_mask=given["attention_mask"],
            max_new_tokens=max_new_tokens,
            **chance,
        )
    text = tokenizer.decode(written[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    return str(text)

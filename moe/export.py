"""A run's model as an ordinary Hugging Face folder, and such a folder as the start of a run.

Decides what an exported checkpoint consists of; writes only the folder it is given. Holds always: the folder appears
complete or not at all; `AutoModelForCausalLM` and `AutoTokenizer` open it with nothing of this project installed;
nothing is unpickled and no code from a checkpoint runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
from moe.companions import Companions, export_companions, write_companions
from moe.config import config_from_json, config_to_json
from moe.families import family_named
from moe.full import full_model
from moe.layout import Layout, layout
from moe.skeleton import model_class
from moe.tokenizer import TOKENIZER_FILE, byte_tokenizer_json, read_vocabulary
from moe.weights import EMBEDDING, HEAD, checked_dtype, open_weights
from protocol.errors import ConfigError
from protocol.folders import Kind, filled_whole, require_fillable
from protocol.ids import BlockId
from protocol.residency import FROZEN

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
    companions: Companions | None = None,
    dtype: str = "fp32",
    replace: bool = False,
) -> None:
    """Write the whole model and its companions (the byte tokenizer by default) to `folder`, which is new or empty.

    `dtype` is what the weights are kept in on disk: fp32, bf16 or fp16. `replace` allows a former checkpoint there; it
    stays until the new one is whole. Nothing else is ever replaced.
    """
    require_room(folder, replace=replace)
    wanted = checked_dtype(dtype)
    values = layout.config_json
    companions = {TOKENIZER_FILE: byte_tokenizer_json(), **(companions or {})}
    _check_vocabulary(companions[TOKENIZER_FILE], values["vocab_size"])
    model = full_model(layout, blocks)
    _convert(model, wanted)
    model.generation_config = GenerationConfig.from_dict({})  # the companions' file takes its place
    with filled_whole(folder, CHECKPOINT_KIND, replace=replace) as staging:
        model.save_pretrained(staging)
        write_companions(export_companions(companions, values), staging)


def require_room(folder: Path, *, replace: bool = False) -> None:
    """ConfigError unless a checkpoint may be written to `folder`: said before a model is loaded for it."""
    is_replaceable = not replace and (folder / CHECKPOINT_KIND.completed_by).is_file()
    way_out = "give a new or an empty folder" + (", or replace the checkpoint there with --force" * is_replaceable)
    require_fillable(folder, CHECKPOINT_KIND, replace=replace, way_out=way_out)


def _convert(model: PreTrainedModel, wanted: torch.dtype) -> None:
    """Round to the type, one tensor after the other: memory holds no second model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            rounded = parameter.data.to(wanted)
            if wanted == torch.float16 and bool((rounded.isinf() & ~parameter.data.isinf()).any()):
                raise ConfigError(f"{name} holds values beyond what fp16 can hold (65504): choose bf16 or fp32")
            parameter.data = rounded
    model.config.dtype = wanted


def _check_vocabulary(tokenizer_json: bytes, vocab_size: int) -> None:
    size = read_vocabulary(tokenizer_json, "of the export").size
    if size > vocab_size:
        raise ConfigError(f"the tokenizer has id {size - 1}, outside the model's vocabulary of {vocab_size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFacts:
    """What is known of a checkpoint on disk before its weights are loaded."""

    config: PreTrainedConfig
    dtype: str
    """What its weights are kept in: fp32, bf16 or fp16."""
    remarks: tuple[str, ...]
    """Sentences for whoever begins with it."""


def import_checkpoint(folder: Path, residency: str = FROZEN) -> tuple[PreTrainedConfig, Blocks]:
    """Configuration and fp32 blocks of a Hugging Face checkpoint on disk; ConfigError says why it cannot be used."""
    config = checkpoint_config(folder)
    return config, slice_blocks(open_checkpoint(folder, config).state_dict(), layout(config, residency))


def checkpoint_config(folder: Path) -> PreTrainedConfig:
    """Configuration of a checkpoint on disk, as `inspect_checkpoint` finds it."""
    return inspect_checkpoint(folder).config


def inspect_checkpoint(folder: Path) -> CheckpointFacts:
    """Configuration and type of a checkpoint on disk; ConfigError says why it cannot be used.

    Of the weights only headers are read, and the two ends of a model whose configuration calls them tied.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is not a checkpoint folder: it has no config.json")
    weights = open_weights(folder)
    _check_architecture(folder / "config.json")
    try:
        found = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{folder}/config.json cannot be read: {error}") from error
    if getattr(found, "quantization_config", None):
        raise ConfigError(f"the weights in {folder} are quantised: take the checkpoint that this one was made from")
    values = config_to_json(found)
    remarks = family_named(found.model_type).remarks(values)
    if values["tie_word_embeddings"] and weights.has_head_of_its_own():
        # As `transformers` itself decides: what the weights say counts.
        values["tie_word_embeddings"] = False
        remarks.append(
            f"{folder}/config.json calls the embeddings tied, but {HEAD} has values of its own: it is trained, and "
            "exported, as a tensor of its own (tie_word_embeddings false)"
        )
    return CheckpointFacts(config=config_from_json(values), dtype=weights.dtype(found.dtype), remarks=tuple(remarks))


def _check_architecture(path: Path) -> None:
    """Say what is wrong in our words, where `transformers` would answer with a list of all that it knows."""
    try:
        values = json.loads(path.read_bytes())
        model_type = values.get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: it is not a JSON object") from error
    if not isinstance(model_type, str):
        raise ConfigError(f"{path} names no model_type: it is not the configuration of a model of transformers")
    model_class(model_type)


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
    if wrong := _misfits(report):
        raise ConfigError(f"the weights in {folder} do not fit its configuration: {wrong}")
    opened_model: PreTrainedModel = model
    opened_model.train(False)
    return opened_model


def _misfits(report: Mapping[str, Any]) -> str:
    """What `transformers` found missing, left over, or of another shape, in words."""
    missing, surplus = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    parts = []
    if missing:
        parts.append(f"missing {_some(missing)}")
    if HEAD in missing:
        parts.append(f"(a model whose head is {EMBEDDING} again has tie_word_embeddings true in its config.json)")
    if surplus:
        parts.append(f"not part of the model {_some(surplus)}")
    if report["mismatched_keys"]:
        told = [f"{name} {list(there)} instead of {list(wanted)}" for name, there, wanted in report["mismatched_keys"]]
        parts.append(f"of another shape {_some(sorted(told))}")
    if not parts and report.get("error_msgs"):
        parts.append("they could not be converted")
    return "; ".join(parts).replace("; (", " (")


def _some(names: Iterable[str]) -> str:
    named = list(names)
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return ", ".join(named[:3]) + more


def sample(folder: Path, prompt: str, max_new_tokens: int, seed: int, *, temperature: float = 0.8) -> str:
    """Text that the checkpoint in `folder` writes after `prompt`, the same for the same seed. 0 is greedy.

    Bytes of a prompt that were no UTF-8 (lone surrogates, as Python passes them on) are taken as U+FFFD. Where the
    tokenizer makes nothing of a prompt, the model goes on from the token that begins, or else ends, a text.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{folder} cannot be opened as a checkpoint: {error}") from error
    ids_1T = _prompt_ids(tokenizer, model.config, prompt, folder)
    chance = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        if not model(input_ids=ids_1T).logits.isfinite().all():
            raise ConfigError(f"the model in {folder} cannot write: what it computes is not finite")
        written = model.generate(
            input_ids=ids_1T,
            attention_mask=torch.ones_like(ids_1T),
            max_new_tokens=max_new_tokens,
            **chance,
        )
    text = tokenizer.decode(written[0, ids_1T.shape[1] :], skip_special_tokens=True)
    return str(text)


def _prompt_ids(tokenizer: Any, config: Any, prompt: str, folder: Path) -> Tensor:
    """Ids [1, T] to go on from, at least one."""
    readable = prompt.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace")
    ids = list(tokenizer(readable)["input_ids"]) if readable else []
    if not ids:
        named = (tokenizer.bos_token_id, tokenizer.eos_token_id, config.bos_token_id, config.eos_token_id)
        flat = (one for token in named for one in (token if isinstance(token, list) else [token]))
        first = next((token for token in flat if token is not None), None)
        if first is None:
            raise ConfigError(
                f"the tokenizer in {folder} makes no token of the prompt {prompt!r:.40}, and has none that begins or "
                "ends a text: give a longer --prompt"
            )
        ids = [first]
    if max(ids) >= config.vocab_size:
        raise ConfigError(f"{folder}: the tokenizer has id {max(ids)}, outside the model's {config.vocab_size}")
    return torch.tensor([ids], dtype=torch.long)

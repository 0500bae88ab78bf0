"""A run's model as an ordinary Hugging Face folder, and such a folder as the start of a run.

Decides what an exported checkpoint consists of; writes only the folder it is given. Holds always: the folder appears
complete or not at all; `AutoModelForCausalLM` and `AutoTokenizer` open it with nothing of this project installed;
nothing is unpickled and no code from a checkpoint runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from moe.blocks import Blocks, check_blocks, slice_blocks
from moe.companions import Companions, export_companions, write_companions
from moe.config import config_from_json, config_to_json
from moe.families import family_named
from moe.full import full_model
from moe.layout import Layout, layout
from moe.mapping import Made, Mapped, mapped
from moe.quantised import WAY_OUT, quantiser_of
from moe.skeleton import meta_model, model_class
from moe.streams import StreamedTensor, read_whole, same_values, streamed_blocks
from moe.tokenizer import TOKENIZER_FILE, byte_tokenizer_json, read_vocabulary
from moe.weights import EMBEDDING, HEAD, Weights, checked_dtype, open_weights
from moe.writing import write_weights
from protocol.errors import ConfigError, LocalError
from protocol.folders import Kind, filled_whole, require_fillable
from protocol.ids import BlockId
from protocol.residency import FROZEN
from protocol.text import human_bytes

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

_WHOLE_BYTES = 12
"""Of memory a parameter, where the whole model is loaded (measured: 11.6)."""


def export_checkpoint(
    blocks: Mapping[BlockId, Mapping[str, Tensor]],
    layout: Layout,
    folder: Path,
    *,
    companions: Companions | None = None,
    dtype: str = "fp32",
    replace: bool = False,
    told: Callable[[int, int], object] = lambda _done, _total: None,
) -> None:
    """Write the whole model and its companions (the byte tokenizer by default) to `folder`, which is new or empty.

    `dtype` is what the weights are kept in on disk: fp32, bf16 or fp16. `replace` allows a former checkpoint there; it
    stays until the new one is whole. Nothing else is ever replaced. Blocks are read a span at a time, so that those
    which lie in mapped files take no memory. `told` hears how many parameters are written, of how many.
    """
    require_room(folder, replace=replace)
    wanted = checked_dtype(dtype)
    values = layout.config_json
    companions = {TOKENIZER_FILE: byte_tokenizer_json(), **(companions or {})}
    _check_vocabulary(companions[TOKENIZER_FILE], values["vocab_size"])
    missing = [block for block in layout.blocks if block not in blocks]
    if missing:
        raise LocalError(f"cannot export: blocks {missing[:5]} are missing of {len(layout.blocks)}")
    check_blocks(blocks, layout)
    model = meta_model(config_from_json(values))
    with filled_whole(folder, CHECKPOINT_KIND, replace=replace) as staging:
        write_weights(staging, blocks, layout, model, dtype, told=told)
        model.config.dtype = str(wanted).removeprefix("torch.")
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(staging)
        write_companions(export_companions(companions, values), staging)


def require_room(folder: Path, *, replace: bool = False) -> None:
    """ConfigError unless a checkpoint may be written to `folder`: said before a model is loaded for it."""
    is_replaceable = not replace and (folder / CHECKPOINT_KIND.completed_by).is_file()
    way_out = "give a new or an empty folder" + (", or replace the checkpoint there with --force" * is_replaceable)
    require_fillable(folder, CHECKPOINT_KIND, replace=replace, way_out=way_out)


def _check_vocabulary(tokenizer_json: bytes, vocab_size: int) -> None:
    size = read_vocabulary(tokenizer_json, "of the export").size
    if size > vocab_size:
        raise ConfigError(f"the tokenizer has id {size - 1}, outside the model's vocabulary of {vocab_size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFacts:
    """What is known of a checkpoint on disk before its weights are read."""

    folder: Path
    config: PreTrainedConfig
    dtype: str
    """What its weights are kept in: fp32, bf16 or fp16."""
    remarks: tuple[str, ...]
    """Sentences for whoever begins with it."""
    weights: Weights
    made: Mapping[str, Made]
    """What each tensor of the model is made of; empty where only `transformers` can tell, with all of it in memory."""
    model: PreTrainedModel
    """Without memory: what `made` was found for."""


def import_checkpoint(folder: Path, residency: str = FROZEN) -> tuple[PreTrainedConfig, Blocks]:
    """Configuration and fp32 blocks of a Hugging Face checkpoint on disk; ConfigError says why it cannot be used.

    In memory: `checkpoint_blocks` is for what is only to be written somewhere.
    """
    found = inspect_checkpoint(folder)
    blocks = {
        block: {name: tensor if isinstance(tensor, Tensor) else read_whole(tensor) for name, tensor in tensors.items()}
        for block, tensors in checkpoint_blocks(found, layout(found.config, residency))
    }
    return found.config, blocks


def checkpoint_blocks(
    found: CheckpointFacts, layout: Layout, told: Callable[[int], object] = lambda _: None
) -> Iterator[tuple[BlockId, Mapping[str, Tensor | StreamedTensor]]]:
    """Every block of the model, one at a time, of tensors that are read a span at a time; see `streamed_blocks`."""
    if found.made:
        yield from streamed_blocks(found.made, layout, found.model, told)
    else:
        yield from slice_blocks(open_checkpoint(found.folder, found.config).state_dict(), layout).items()


def checkpoint_config(folder: Path) -> PreTrainedConfig:
    """Configuration of a checkpoint on disk, as `inspect_checkpoint` finds it."""
    return inspect_checkpoint(folder).config


def inspect_checkpoint(folder: Path, *, only_headers: bool = False) -> CheckpointFacts:
    """Configuration and type of a checkpoint on disk; ConfigError says why it cannot be used.

    Of the weights only headers are read, and the two ends of a model whose configuration calls them tied; with
    `only_headers` not even those: such a model counts as tied.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is not a checkpoint folder: it has no config.json")
    weights = open_weights(folder)
    _check_architecture(folder / "config.json")
    try:
        said = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{folder}/config.json cannot be read: {error}") from error
    quantiser = quantiser_of(said, folder, weights.tensors)
    config, model, there, remarks = _mapped(folder, said, weights, quantiser, only_headers)
    remarks += family_named(said.model_type).remarks(config_to_json(config))
    columns = {spec.name for spec in layout(config, FROZEN).column}
    odd = [one for one in there.made.values() if one.problem() is None and not one.is_readable(one.name in columns)]
    if odd and quantiser is not None:
        raise ConfigError(f"the weights in {folder} are quantised, {odd[0].name} in a way that is not read: {WAY_OUT}")
    if odd:
        remarks.append(
            f"{odd[0].name} is kept in a way that transformers alone can convert: the whole model is loaded for it, "
            f"which takes about {human_bytes(_WHOLE_BYTES * model.num_parameters())} of memory"
        )
    else:
        _refuse_misfits(there, folder)
    if there.left_out:
        remarks.append(f"not part of the model, and left out as transformers does: {_some(there.left_out)}")
    if quantiser is not None:
        remarks.append(f"the weights in {folder} are quantised: they are dequantised to fp32 while they are read")
    return CheckpointFacts(
        folder=folder,
        config=config,
        dtype=weights.dtype(said.dtype),
        remarks=tuple(remarks),
        weights=weights,
        made={} if odd else there.made,
        model=model,
    )


def _mapped(
    folder: Path, said: PreTrainedConfig, weights: Weights, quantiser: Any, only_headers: bool
) -> tuple[PreTrainedConfig, PreTrainedModel, Mapped, list[str]]:
    """The model that config.json means, tied or not as the weights say, which is what `transformers` goes by, too."""
    values = config_to_json(said)
    config = config_from_json(values)
    model = meta_model(config)
    there = mapped(model, weights.tensors, quantiser)
    for one, other in there.twice:
        name = next(iter(other.sources))
        if only_headers:
            return config, model, there, [f"{name} is there beside {one.name}: whether they differ is seen at `init`"]
        if not same_values(one, other):
            values["tie_word_embeddings"] = False
            config = config_from_json(values)
            model = meta_model(config)
            remark = (
                f"{folder}/config.json calls the embeddings tied, but {name} has values of its own: it is trained, and "
                "exported, as a tensor of its own (tie_word_embeddings false)"
            )
            return config, model, mapped(model, weights.tensors, quantiser), [remark]
    return config, model, there, []


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
    if json.loads((folder / "config.json").read_bytes()).get("quantization_config"):
        return full_model(layout(config, FROZEN), import_checkpoint(folder)[1])
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


def _refuse_misfits(there: Mapped, folder: Path) -> None:
    quantised = next(filter(None, (made.quantised() for made in there.made.values())), None)
    if quantised is not None:
        raise ConfigError(
            f"the weights in {folder} are quantised ({quantised.name} is kept as {quantised.dtype}): {WAY_OUT}"
        )
    problems = sorted(filter(None, (made.problem() for made in there.made.values())))
    report = {"missing_keys": there.missing, "unexpected_keys": there.surplus, "mismatched_keys": problems}
    if wrong := _misfits(report):
        raise ConfigError(f"the weights in {folder} do not fit its configuration: {wrong}")


def _misfits(report: Mapping[str, Any]) -> str:
    """What is missing, left over, or of another shape, in words."""
    missing, surplus = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    parts = []
    if missing:
        parts.append(f"missing {_some(missing)}")
    if HEAD in missing:
        parts.append(f"(a model whose head is {EMBEDDING} again has tie_word_embeddings true in its config.json)")
    if surplus:
        parts.append(f"not part of the model {_some(surplus)}")
    if told := [_shapes(one) for one in report["mismatched_keys"]]:
        parts.append(f"of another shape {_some(sorted(told))}")
    if not parts and report.get("error_msgs"):
        parts.append("they could not be converted")
    return "; ".join(parts).replace("; (", " (")


def _shapes(mismatch: Any) -> str:
    """In words, as it is here or as `transformers` has it."""
    if isinstance(mismatch, str):
        return mismatch
    name, there, wanted = mismatch
    return f"{name} {list(there)} instead of {list(wanted)}"


def _some(names: Iterable[str]) -> str:
    named = list(names)
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return ", ".join(named[:3]) + more

"""Blocks as the weight files of a checkpoint, without the memory to hold it: each tensor is written a span at a time.

Decides which names the files have, and in which file a tensor lies. The names are the hub's (each expert by itself, as
`save_pretrained` writes them, too): they are what other programs read, and `from_pretrained` takes them as well as the
model's own. They are found by turning the conversions of `transformers` back on tensors without memory, and by mapping
the result forth again (moe/mapping.py): a tensor that does not come back as it was keeps the model's own name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, dot_natural_key, revert_weight_conversion

from moe.blocks import joined
from moe.layout import Layout
from moe.mapping import Made, mapped
from moe.stored import SPAN, StoredTensor
from moe.weights import DTYPES, INDEX_FILE, WEIGHTS_FILE
from protocol.errors import ConfigError, LocalError
from protocol.ids import TRUNK, BlockId, column_block

MAX_FILE_BYTES: Final = 5_000_000_000
"""Of one weight file: a download that breaks off begins again with no more than this."""
_ALIGNMENT_BYTES: Final = 8
_SPELT: Final = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.int32: "I32",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Written:
    """One tensor of a file: values [start, start + elements) of one of the model's, flattened."""

    name: str
    shape: tuple[int, ...]
    tensor: str
    start: int
    dtype: torch.dtype
    """What it is kept in."""
    turned_back: tuple[ConversionOps, ...] = ()
    """What is done to each expert's part on the way, where the values are in another order."""

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def payload_bytes(self) -> int:
        """Bytes of its values."""
        return self.elements * self.dtype.itemsize


def write_weights(
    folder: Path,
    blocks: Mapping[BlockId, Mapping[str, Tensor]],
    layout: Layout,
    model: PreTrainedModel,
    dtype: str,
    *,
    told: Callable[[int, int], object] = lambda _done, _total: None,
) -> None:
    """Write all weights of `blocks`, rounded to `dtype`, into `folder`; `model` is the layout's, without memory.

    Buffers are kept in what the class keeps them in: a selection bias that is rounded chooses other experts.
    `told` hears how many values are written, of how many. ConfigError where fp16 cannot hold one. What is written is
    not synced: the folder is, as a whole, by whoever gives it its name.
    """
    wanted = written_tensors(model, layout, DTYPES[dtype])
    files = list(_files(wanted, MAX_FILE_BYTES))
    total, done = sum(one.elements for one in wanted), 0
    names = [WEIGHTS_FILE]
    if len(files) > 1:
        names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
        index = {
            "metadata": {"total_parameters": total, "total_size": sum(one.payload_bytes for one in wanted)},
            "weight_map": {one.name: name for name, file in zip(names, files, strict=True) for one in file},
        }
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name, content in zip(names, files, strict=True):
        with (folder / name).open("xb") as file:
            file.write(header_of(content))
            for one in content:
                for values in _values(one, blocks, layout):
                    file.write(_rounded(values, one).view(torch.uint8).numpy().data)
                    done += values.numel()
                    told(done, total)


def written_tensors(model: PreTrainedModel, layout: Layout, dtype: torch.dtype) -> list[Written]:
    """Every tensor of the files, in their order; `dtype` is what parameters are kept in."""
    state = model.state_dict()
    rounded = {name for name, _ in model.named_parameters()} - set(layout.integers)
    ignored = {name for name, _ in layout.tied} | set(model._keys_to_ignore_on_save or ())
    own = {name: tensor for name, tensor in state.items() if name not in ignored}
    turned_back: Mapping[str, Tensor] = revert_weight_conversion(model, own)
    stored = {name: StoredTensor(name, tuple(tensor.shape)) for name, tensor in turned_back.items()}
    there = mapped(model, stored)
    sound = {name: made for name, made in there.made.items() if made.is_pieces and made.problem() is None}
    found = []
    for name, tensor in own.items():
        kept_in = dtype if name in rounded else tensor.dtype
        if name not in sound:
            is_column = any(spec.name == name for spec in layout.column)
            by_expert = _by_expert(there.made.get(name), kept_in) if is_column else None
            found.append(by_expert or Written(name, tuple(tensor.shape), name, 0, kept_in))
            continue
        laid_out = sound[name].laid_out()
        for part, end in zip(laid_out.parts, laid_out.ends, strict=True):
            found.append(Written(part.name, part.shape, name, end - part.elements, kept_in))
    return sorted(found, key=lambda one: dot_natural_key(one.name))


def _by_expert(made: Made | None, kept_in: torch.dtype) -> Written | None:
    """A tensor whose values `transformers` puts in another order within each expert; None for any other."""
    if made is None or made.converter is None or not made.is_by_expert or len(made.sources) != 1:
        return None
    (stored,), *_ = made.sources.values()
    back = tuple(operation.reverse_op for operation in reversed(made.converter.operations))
    return Written(stored.name, stored.shape, made.name, 0, kept_in, back)


def _files(wanted: Sequence[Written], most: int) -> Iterator[list[Written]]:
    """As many to a file as `most` bytes allow, one at least; in a file the widest values first, as the format wants."""
    file: list[Written] = []
    held = 0
    for one in wanted:
        if file and held + one.payload_bytes > most:
            yield _widest_first(file)
            file, held = [], 0
        file.append(one)
        held += one.payload_bytes
    yield _widest_first(file)


def _widest_first(file: Sequence[Written]) -> list[Written]:
    return sorted(file, key=lambda one: -one.dtype.itemsize)


def header_of(content: Sequence[Written]) -> bytes:
    """The first bytes of a file of these tensors, which then lie in it in this order."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for one in content:
        end = begin + one.payload_bytes
        entries[one.name] = {"dtype": _SPELT[one.dtype], "shape": list(one.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text


def _values(one: Written, blocks: Mapping[BlockId, Mapping[str, Tensor]], layout: Layout) -> Iterator[Tensor]:
    """fp32, in order, some at a time; where they lie in a block, without a copy."""
    width = next((math.prod(spec.shape) for spec in layout.column if spec.name == one.tensor), 0)
    part = layout.family.per_expert(one.tensor)
    columns = layout.columns_with(one.tensor) if width else range(0)
    if width and part is not None and part.dim:  # a small one: its experts are not one below the other
        parts = [blocks[column_block(column)][one.tensor] for column in columns]
        yield joined(parts, one.tensor, layout).reshape(-1)[one.start : one.start + one.elements]
        return
    if one.turned_back:
        for column in columns:
            yield _turned(blocks[column_block(column)][one.tensor].detach().unsqueeze(0), one).reshape(-1)
        return
    start, stop = one.start, one.start + one.elements
    while start < stop:
        expert, at = divmod(start, width) if width else (0, start)
        block = column_block(columns[expert]) if width else TRUNK
        flat = blocks[block][one.tensor].detach().reshape(-1)
        values = flat[at : at + min(SPAN, stop - start)]
        if not values.numel():
            raise LocalError(f"block {block}: {one.tensor} ends before value {start}")
        yield values
        start += values.numel()


def _turned(row: Tensor, one: Written) -> Tensor:
    for operation in one.turned_back:
        made: Any = operation.convert({one.name: [row]}, source_patterns=[one.name], target_patterns=[one.name])
        row = made[one.name]
    return row


def _rounded(values: Tensor, one: Written) -> Tensor:
    rounded = values.to(one.dtype).contiguous()
    if one.dtype == torch.float16 and bool((rounded.isinf() & ~values.isinf()).any()):
        raise ConfigError(f"{one.tensor} holds values beyond what fp16 can hold (65504): choose bf16 or fp32")
    return rounded

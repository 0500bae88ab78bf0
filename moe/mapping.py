"""Which tensors of a checkpoint each tensor of the model is made of, by the names and shapes of both alone.

Decides as `from_pretrained` does, with the renamings and conversions that `transformers` itself keeps for a class
(`conversion_mapping.py`, `core_model_loading.py`): checkpoints have their experts one by one, the model has them in one
tensor. What only puts tensors one after the other (stacking experts, gate above up, queries above keys) becomes a list
of pieces that can be read from anywhere. What computes (weights that are dequantised) is done by the operations of
`transformers`, on one expert at a time where they keep experts apart. Touches no file. The same mapping, read the other
way, says how an export is written (moe/writing.py).
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    Interleave,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.utils.loading_report import LoadStateDictInfo

from moe.stored import StoredTensor
from moe.weights import BY_HEADER

_DEQUANTISES: Final = ("Fp8Dequantize", "Mxfp4Dequantize")
"""Both take each expert by itself. By name, since importing them costs what their integrations do."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Values [start, stop) of a stored tensor, flattened."""

    stored: StoredTensor
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class LaidOut:
    """Stored tensors whose values, one after the other, are those of one tensor of the model."""

    parts: tuple[StoredTensor, ...]
    ends: tuple[int, ...]
    """Where each of them ends."""

    def pieces(self, start: int, stop: int) -> Iterator[Stretch]:
        """Where values [start, stop) of the flattened tensor lie, in order."""
        at = bisect_right(self.ends, start)
        while start < stop:
            begin, end = self.ends[at] - self.parts[at].elements, min(stop, self.ends[at])
            if end > start:
                yield Stretch(self.parts[at], start - begin, end - begin)
            start, at = end, at + 1


@dataclass(frozen=True, slots=True)
class Made:
    """What one tensor of the model is made of."""

    name: str
    shape: tuple[int, ...]
    converter: WeightConverter | None
    """The conversion of `transformers`; None where the tensor is only called otherwise."""
    sources: Mapping[str, tuple[StoredTensor, ...]]
    """By the pattern of the converter that their names fit, in the order of their names."""

    is_number: bool = True
    """Whether the model keeps it as floating-point numbers."""

    @property
    def payload_bytes(self) -> int:
        """Bytes of all that it is made of."""
        return sum(one.payload_bytes for found in self.sources.values() for one in found)

    @property
    def is_pieces(self) -> bool:
        """Whether its values are those of stored tensors, one after the other."""
        return self._operations() in ((), ("stack",), ("stack", "beside"), ("above",))

    @property
    def is_by_expert(self) -> bool:
        """Whether the operations can be done on one expert at a time."""
        experts = self.shape[0] if self.shape else 0
        return "other" not in self._operations() and all(
            len(found) == experts if self._is_listed else len(found) == 1 and found[0].shape[:1] == (experts,)
            for found in self.sources.values()
        )

    def is_readable(self, in_columns: bool) -> bool:
        """Whether it can be made by itself, and where it lies in expert columns, one expert at a time."""
        if self.is_pieces:
            return True
        assert self.converter is not None
        return self.is_by_expert if in_columns else len(self.converter.target_patterns) == 1

    def problem(self) -> str | None:
        """Why the stored tensors cannot make this one, in words; None where they can, or where only trying tells."""
        fewest = min(map(len, self._lists()))
        if self._is_listed and fewest != self.shape[0]:
            return f"{self.name} (of one of its matrices {fewest} of {self.shape[0]} experts are there)"
        found = self._found_shape() if self.is_pieces else self.shape
        if found == self.shape:
            return None
        return f"{self.name} {list(found) if found else 'of unequal parts'} instead of {list(self.shape)}"

    def quantised(self) -> StoredTensor | None:
        """A stored tensor that is no number by itself, where nothing here makes numbers of it."""
        parts = self._parts() if self.is_pieces and self.is_number else ()
        return next((one for one in parts if one.dtype not in BY_HEADER), None)

    def laid_out(self) -> LaidOut:
        """Where its values lie; of one that `is_pieces`, without problem."""
        parts = tuple(self._parts())
        return LaidOut(parts, tuple(accumulate(part.elements for part in parts)))

    def converted(self, expert: int | None, model: PreTrainedModel) -> Tensor:
        """The tensor, or one expert's row of it, by the operations of `transformers`; what they raise is raised."""
        assert self.converter is not None
        converter = copy.deepcopy(self.converter)
        for pattern, found in self.sources.items():
            if expert is None:
                read = [one.rows(0, one.shape[0]) if one.shape else one.read(0, 1).view(()) for one in found]
            elif self._is_listed:
                read = [found[expert].rows(0, found[expert].shape[0])]
            else:
                read = [found[0].rows(expert, expert + 1)]
            for stored, tensor in zip(found, read, strict=False):
                converter.add_tensor(self.name, stored.name, pattern, tensor)  # type: ignore[arg-type]
        made: dict[str, Any] = converter.convert(self.name, model=model, config=model.config)
        tensor = made[self.name]
        whole: Tensor = (tensor[0] if isinstance(tensor, list) else tensor).detach().to(torch.float32)
        return whole if expert is None else whole[0]

    @property
    def _is_listed(self) -> bool:
        return self.converter is not None and any(isinstance(op, MergeModulelist) for op in self.converter.operations)

    def _operations(self) -> tuple[str, ...]:
        if self.converter is None:
            return ()
        found = list(self.converter.operations)
        if type(found[0]).__name__ in _DEQUANTISES and not any("scale" in pattern for pattern in self.sources):
            found = found[1:]  # what has no scales was never quantised
        return tuple(map(_kind, found))

    def _parts(self) -> Sequence[StoredTensor]:
        lists = self._lists()
        if self._is_listed:
            return [found[index] for index in range(len(lists[0])) for found in lists]
        return [one for found in lists for one in found]

    def _lists(self) -> list[tuple[StoredTensor, ...]]:
        order = self.sources if self.converter is None else self.converter.source_patterns
        lists = [self.sources[pattern] for pattern in order if pattern in self.sources]
        return lists[:1] if self.converter is None else lists

    def _found_shape(self) -> tuple[int, ...] | None:
        """The shape that the stored tensors make together; None where they make none."""
        lists = self._lists()
        if not self._operations():
            return lists[0][0].shape
        each = [found[0].shape for found in lists]
        if any(not shape or {one.shape for one in found} != {shape} for shape, found in zip(each, lists, strict=True)):
            return None
        if len({shape[1:] for shape in each}) != 1:
            return None
        if not self._is_listed:
            return (sum(shape[0] * len(found) for shape, found in zip(each, lists, strict=True)), *each[0][1:])
        counts = {len(found) for found in lists}
        return (counts.pop(), sum(shape[0] for shape in each), *each[0][1:]) if len(counts) == 1 else None


def _kind(operation: object) -> str:
    """What an operation of `transformers` does: "other" where it may mix experts, as far as is known here."""
    if isinstance(operation, MergeModulelist) and operation.dim == 0:
        return "stack"
    if isinstance(operation, Concatenate) and operation.dim in (0, 1):
        return ("above", "beside")[operation.dim]
    is_inside = (isinstance(operation, Transpose) and min(operation.dim0, operation.dim1) >= 1) or (
        isinstance(operation, Interleave) and operation.dim >= 1
    )
    return "inside" if is_inside or type(operation).__name__ in _DEQUANTISES else "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """A checkpoint's tensors as the model's."""

    made: Mapping[str, Made]
    """By the model's name; of tied tensors, by the first of their names."""
    missing: tuple[str, ...]
    surplus: tuple[str, ...]
    """Stored, and no part of the model."""
    twice: tuple[tuple[Made, Made], ...]
    """Tied tensors that are stored under both of their names: the one in `made`, and the other."""
    left_out: tuple[str, ...]
    """Stored, and left out by `transformers` itself, which says so for the class."""


def mapped(model: PreTrainedModel, stored: Mapping[str, StoredTensor], quantiser: Any = None) -> Mapped:
    """How `model`, which may lie on meta, is made of `stored`, as `from_pretrained` would make it."""
    transforms = get_model_conversion_mapping(model, hf_quantizer=quantiser)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    state, prefix = model.state_dict(keep_vars=True), model.base_model_prefix
    sources: dict[str, dict[str, list[StoredTensor]]] = {}
    by: dict[str, WeightConverter | None] = {}
    surplus: set[str] = set()
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], prefix, state)
        if target in state:
            by.setdefault(target, None if pattern is None else by_pattern[pattern])
            sources.setdefault(target, {}).setdefault(pattern or name, []).append(stored[name])
        elif pattern is None:
            surplus.add(target)
        else:
            first = by_pattern[pattern].target_patterns[0]
            surplus |= {target.replace(first, each) for each in by_pattern[pattern].target_patterns}
    first_names: dict[int, str] = {}
    for name, tensor in state.items():
        first_names.setdefault(id(tensor), name)
    each: dict[str, Made] = {}
    for name, found in sources.items():
        lists = {pattern: tuple(ones) for pattern, ones in found.items()}
        first, tensor = first_names[id(state[name])], state[name]
        each[name] = Made(first, tuple(tensor.shape), by[name], lists, tensor.is_floating_point())
    made = {one.name: each.get(one.name, one) for one in each.values()}  # of tied tensors, either will do
    missing = set(first_names.values()) - made.keys()
    info = LoadStateDictInfo(missing, set(surplus), set(), [], {}, set())
    model._adjust_missing_and_unexpected_keys(info)
    return Mapped(
        made=made,
        missing=tuple(sorted(missing)),
        surplus=tuple(sorted(info.unexpected_keys)),
        twice=tuple((made[one.name], one) for one in each.values() if one is not made[one.name]),
        left_out=tuple(sorted(surplus - info.unexpected_keys)),
    )

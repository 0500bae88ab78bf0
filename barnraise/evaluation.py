"""How good a checkpoint is on text that no worker saw: loss, perplexity, bits a byte, and how its experts are doing.

Decides which sequences are read and whether checkpoint and text go together; the measuring is `moe/`'s. Text that is
not prepared yet is tokenized with the checkpoint's own tokenizer into a temporary folder; which of its documents are
held out depends on the documents alone, so they are those that a run prepared from the same text held out.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from barnraise.writers import half_of_free
from coordinator.datasets import open_or_prepare
from coordinator.datasets.card import DatasetCard
from moe.config import config_to_json
from moe.export import CheckpointFacts, checkpoint_blocks, inspect_checkpoint, open_checkpoint
from moe.findings import ExpertHealth
from moe.health import column_sets, examine, usual_held
from moe.layout import layout
from moe.necessity import RandomRouting, random_routing
from moe.on_demand import on_demand_model
from moe.tokenizer import byte_tokenizer_json, require_same_tokenizer
from protocol.errors import ConfigError
from protocol.ids import digest_of
from protocol.residency import FROZEN

_BYTE_VALUES = 256

Told = Callable[[str], None]
"""Called with what is being done, again and again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One checkpoint on one text."""

    checkpoint: str
    dataset: str
    """The dataset's digest."""
    tokenizer: str
    device: str
    sequences: int
    heldout_sequences: int
    """All that the held-out part makes of this length."""
    sequence_length: int
    tokens: int
    """Predicted, and as many read."""
    loss: float
    """Nats a token; its standard error is over sequences."""
    loss_se: float
    perplexity: float
    perplexity_se: float
    bits_per_byte: float | None
    """None where the dataset does not say how many bytes its tokens stand for."""
    bits_per_byte_se: float | None
    bytes_exact: bool
    """Whether the bytes were counted (byte tokenizer); else they are the dataset's average a token."""
    health: ExpertHealth
    random_routing: RandomRouting | None = None
    """What random experts cost; None where it was not asked for."""

    def as_dict(self, *, matrices: bool = True) -> dict[str, Any]:
        """Plain data for JSON: what is not finite becomes None."""
        apart = ("health", "random_routing")
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in apart}
        random = None if self.random_routing is None else _finite(asdict(self.random_routing))
        return _finite(own) | {"health": self.health.as_dict(matrices=matrices), "random_routing": random}


def evaluate(
    checkpoint: Path,
    data: str,
    *,
    sequence_length: int = 128,
    limit: int | None = None,
    batch: int = 16,
    device: str = "auto",
    columns_held: int | None = None,
    drift: bool = False,
    memory_bytes: int | None = None,
    tell: Told = lambda _: None,
    note: Told = lambda _: None,
) -> Evaluation:
    """Measure `checkpoint` on the held-out part of `data`; `drift` also measures routing with columns absent or random.

    `limit` sequences at even distances are read, all of them with None. `columns_held` is by default half of the
    columns, and top-k at least. On a CPU a model that has no room in half of the free memory is read from the disk
    while it runs, and with `memory_bytes`, for its experts, in any case. `note` gets sentences about the checkpoint
    that a person should see. ConfigError says why checkpoint, text and options do not go together.
    """
    where = chosen_device(device)
    found = inspect_checkpoint(checkpoint)
    for remark in found.remarks:
        note(remark)
    config = found.config
    values = config_to_json(config)
    if sequence_length > (longest := int(values["max_position_embeddings"])):
        raise ConfigError(f"sequences of {sequence_length} tokens: the model reads at most {longest} positions")
    sets = column_sets(int(values["num_experts"]), _held(values, columns_held)) if drift else ()
    card, tokens_NT1, of_all = _heldout_tokens(checkpoint, data, values, sequence_length, limit, tell, note)
    tell("reading the checkpoint")
    model: Any = _opened(found, where, memory_bytes, tell)
    try:
        model.to(where)
        health = examine(
            model,
            tokens_NT1,
            batch=batch,
            column_sets=sets,
            progress=lambda done, all_of_them: tell(f"{done:,} of {all_of_them:,} sequences"),
        )
        if drift:
            tell("random experts")
        random = random_routing(model, tokens_NT1, batch) if drift else None
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"{where} has too little memory for this: lower --batch, or choose --device cpu") from error
    perplexity = _exp(health.loss)
    bytes_per_token, exact = _bytes_per_token(card, tokens_NT1)
    per_byte = None if bytes_per_token is None else 1.0 / (math.log(2) * bytes_per_token)
    return Evaluation(
        checkpoint=str(checkpoint),
        dataset=card.digest,
        tokenizer=card.tokenizer,
        device=str(where),
        sequences=tokens_NT1.shape[0],
        heldout_sequences=of_all,
        sequence_length=sequence_length,
        tokens=health.tokens,
        loss=health.loss,
        loss_se=health.loss_se,
        perplexity=perplexity,
        perplexity_se=perplexity * health.loss_se,  # to first order
        bits_per_byte=None if per_byte is None else health.loss * per_byte,
        bits_per_byte_se=None if per_byte is None else health.loss_se * per_byte,
        bytes_exact=exact,
        health=health,
        random_routing=random,
    )


def _opened(found: CheckpointFacts, where: torch.device, memory_bytes: int | None, tell: Told) -> Any:
    """The model in fp32: whole in memory where it has room, else with its experts on the disk."""
    if where.type != "cpu":
        if memory_bytes is not None:
            raise ConfigError(
                "experts are read from the disk on a CPU only: leave out --memory, or choose --device cpu"
            )
        return open_checkpoint(found.folder, found.config)
    cut, room_bytes = layout(found.config, FROZEN), half_of_free()
    if memory_bytes is None and cut.total_bytes <= room_bytes:
        return open_checkpoint(found.folder, found.config)
    kept_bytes = room_bytes if memory_bytes is None else memory_bytes
    return on_demand_model(cut, dict(checkpoint_blocks(found, cut)), torch.float32, kept_bytes=kept_bytes, told=tell)


def chosen_device(device: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device that is there; ConfigError otherwise."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = device.partition(":")
    if device != "cpu" and not (kind == "cuda" and (number.isdecimal() or device == "cuda")):
        raise ConfigError(f"device {device!r}: expected auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device}: this PyTorch sees {torch.cuda.device_count()} CUDA GPUs")
    return torch.device(device)


def _held(values: Mapping[str, Any], columns_held: int | None) -> int:
    columns, top_k = int(values["num_experts"]), int(values["num_experts_per_tok"])
    if columns_held is None:
        return usual_held(columns, top_k)
    if not top_k <= columns_held <= columns:
        raise ConfigError(f"a shard with columns absent holds {top_k} (top-k) to {columns} of them, not {columns_held}")
    return columns_held


def _heldout_tokens(
    checkpoint: Path,
    data: str,
    values: Mapping[str, Any],
    sequence_length: int,
    limit: int | None,
    tell: Told,
    note: Told,
) -> tuple[DatasetCard, Tensor, int]:
    """The card, sequences [N, T+1] int64, and how many there would have been without the limit."""
    with tempfile.TemporaryDirectory(prefix="barnraise-evaluate-") as scratch:
        dataset = open_or_prepare(
            data,
            scratch,
            checkpoint=checkpoint,
            progress=lambda documents, tokens: tell(f"tokenizing: {documents:,} documents, {tokens:,} tokens"),
            note=note,
        )
        doubt = require_same_tokenizer(
            checkpoint,
            dataset.tokenizer_json,
            data=data,
            tokenizer=dataset.card.tokenizer,
            model_vocab_size=int(values["vocab_size"]),
        )
        if doubt is not None:
            note(doubt)
        tokens_NT1 = torch.from_numpy(dataset.heldout_all(sequence_length, limit).astype("int64"))
        return dataset.card, tokens_NT1, dataset.heldout_sequences(sequence_length)


def _bytes_per_token(card: DatasetCard, tokens_NT1: Tensor) -> tuple[float | None, bool]:
    """Bytes of text that a predicted token stands for, on average, and whether they were counted."""
    if card.tokenizer_sha256 == digest_of(byte_tokenizer_json()):
        targets_NT = tokens_NT1[:, 1:]
        counted = int((targets_NT < _BYTE_VALUES).sum())  # the others end documents
        return (counted / targets_NT.numel() if counted else None), True
    text_bytes = sum(source.text_bytes for source in card.sources)
    return (text_bytes / (card.train_tokens + card.heldout_tokens) if text_bytes else None), False


def _exp(loss: float) -> float:
    """e to the loss: NaN stays NaN, and what is too large is infinite."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if _is_broken(value) else value for name, value in values.items()}


def _is_broken(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)

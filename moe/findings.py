"""What an examination of a model's experts found, as data and in words; how it is found is `moe.health`.

Decides nothing and touches nothing: plain records, which reports and charts read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerHealth:
    """One layer with experts; `routed`, `load` and `cosine` by column."""

    layer: int
    routed: tuple[int, ...]
    """Tokens sent to each expert."""
    load: tuple[float, ...]
    token_entropy: float
    load_entropy: float
    cosine: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadExpert:
    """An expert that hardly any token is sent to."""

    layer: int
    column: int
    load: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateExperts:
    """Two experts of a layer with nearly the same weights."""

    layer: int
    columns: tuple[int, int]
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingDrift:
    """Absent against full routing, averaged over the column sets."""

    column_sets: tuple[tuple[int, ...], ...]
    changed: float
    """Share of tokens whose set of experts is another one, over all layers."""
    changed_by_layer: tuple[float, ...]
    kl: float
    """Nats a token, over all layers."""
    kl_by_layer: tuple[float, ...]
    loss_gap: float
    """Absent minus full, nats a token: positive where absence costs."""
    loss_gap_se: float
    """Over sequences, which are paired."""

    @property
    def in_words(self) -> str:
        """One line: what absence changes."""
        held, sets = len(self.column_sets[0]), len(self.column_sets)
        columns = len(set().union(*self.column_sets))
        return (
            f"with {held} of {columns} columns there ({sets} sets): {self.changed:.0%} of tokens go to other experts, "
            f"routing differs by {self.kl:.3f} nats, loss {self.loss_gap:+.4f} ± {self.loss_gap_se:.4f}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertHealth:
    """What was found, with the thresholds it was judged by."""

    tokens: int
    """Read by the model: the last one of each sequence is only predicted."""
    loss: float
    """Nats a token."""
    loss_se: float
    columns: int
    top_k: int
    column_load: tuple[float, ...]
    """Over all layers."""
    layers: tuple[LayerHealth, ...]
    dead: tuple[DeadExpert, ...]
    duplicates: tuple[DuplicateExperts, ...]
    dead_load: float
    duplicate_cosine: float
    random_cosine: float
    """Standard deviation of the cosine between two random experts of this size."""
    drift: RoutingDrift | None
    no_drift: str
    """Why `drift` is not there; empty where it is."""

    @property
    def load_range(self) -> tuple[float, float]:
        """Smallest and largest load of an expert."""
        loads = [load for layer in self.layers for load in layer.load]
        return min(loads), max(loads)

    @property
    def largest_cosine(self) -> float:
        """Between two experts of any layer; NaN in a model of one expert, or whose weights are not finite."""
        pairs = [layer.cosine[a][b] for layer in self.layers for a in range(self.columns) for b in range(a)]
        return max(pairs) if pairs and all(map(math.isfinite, pairs)) else math.nan

    def mean_entropy(self) -> tuple[float, float]:
        """Token and load entropy, averaged over layers."""
        return fmean(one.token_entropy for one in self.layers), fmean(one.load_entropy for one in self.layers)

    @property
    def in_words(self) -> str:
        """One line: load, entropy, and what is ill."""
        low, high = self.load_range
        of_tokens, of_load = self.mean_entropy()
        dead = f"{len(self.dead)} of {len(self.layers) * self.columns} experts dead" if self.dead else "none dead"
        pairs = f"{len(self.duplicates)} duplicate pairs" if self.duplicates else "no duplicates"
        return (
            f"load {low:.2f} to {high:.2f} (1 is even), entropy {of_tokens:.2f} a token and {of_load:.2f} of the load "
            f"(of 1); {dead}, {pairs}"
        )

    def summary(self) -> dict[str, Any]:
        """The few figures by which two models are compared, as plain data."""
        (low, high), (of_tokens, of_load) = self.load_range, self.mean_entropy()
        found = {
            "in_words": self.in_words,
            "tokens": self.tokens,
            "dead": len(self.dead),
            "duplicates": len(self.duplicates),
            "load_smallest": low,
            "load_largest": high,
            "token_entropy": of_tokens,
            "load_entropy": of_load,
            "largest_cosine": self.largest_cosine,
            "drift_changed": None if self.drift is None else self.drift.changed,
            "drift_kl": None if self.drift is None else self.drift.kl,
            "drift_loss_gap": None if self.drift is None else self.drift.loss_gap,
        }
        return {name: _plain(value) for name, value in found.items()}

    def as_dict(self, *, matrices: bool = True) -> dict[str, Any]:
        """Plain data for JSON: what is not finite becomes None. Without `matrices`, no cosines but the duplicates'."""
        found = dataclasses.asdict(self)
        for layer in found["layers"]:
            cosine = layer.pop("cosine")
            if matrices:
                layer["cosine"] = [[round(value, 4) for value in row] for row in cosine]
        plain = _plain(found)
        assert isinstance(plain, dict)
        return plain


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value

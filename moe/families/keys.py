"""What one key of a model's configuration may be, and the keys that every family has.

Decides ranges; touches nothing. Holds always: no value of any key can name code, files or addresses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

ACTIVATIONS: Final = ("silu", "gelu", "gelu_pytorch_tanh", "relu")
MAX_LAYERS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What one key's value may be."""

    kind: type
    low: float = 0
    high: float = 0
    multiple_of: int = 1
    optional: bool = False
    many: bool = False
    """Whether a list may stand for one value: it has at most `high` + 1 entries."""
    listed: bool = False
    """Whether it is a list: it has at most an entry for each layer."""
    choices: tuple[str, ...] = ACTIVATIONS
    """What a string may be."""
    also: tuple[str, ...] = ()
    """Words that may stand in its place."""
    entries: tuple[str, ...] = ()
    """Where it is an object: its keys, all of them, whose values are of this kind."""

    def problem(self, value: object) -> str | None:
        """Why `value` is not allowed; None when it is."""
        if value is None:
            return None if self.optional else "must not be null"
        if self.entries:
            if not isinstance(value, dict) or value.keys() != set(self.entries):
                return f"expected an object of {', '.join(self.entries)}, got {value!r:.60}"
            return next((why for entry in value.values() if (why := self._problem_of_one(entry))), None)
        if (self.many or self.listed) and isinstance(value, list):
            longest = MAX_LAYERS if self.listed else int(self.high) + 1
            if len(value) > longest:
                return f"has {len(value)} entries, more than {longest}"
            return next((why for entry in value if (why := self._problem_of_one(entry))), None)
        return f"expected a list, got {value!r:.60}" if self.listed else self._problem_of_one(value)

    def _problem_of_one(self, value: object) -> str | None:
        if isinstance(value, str) and value in self.also:
            return None
        if self.kind is str:
            return None if value in self.choices else f"expected one of {', '.join(self.choices)}, got {value!r:.60}"
        if self.kind is bool:
            return None if isinstance(value, bool) else f"expected true or false, got {value!r:.60}"
        number = isinstance(value, int) or (self.kind is float and isinstance(value, float) and math.isfinite(value))
        if isinstance(value, bool) or not number:
            return f"expected a finite {self.kind.__name__}, got {value!r:.60}"
        assert isinstance(value, int | float)
        if not self.low <= value <= self.high:
            return f"expected {self.low:g} to {self.high:g}, got {value!r:.60}"
        if self.multiple_of > 1 and value % self.multiple_of:
            return f"expected a multiple of {self.multiple_of}, got {value!r:.60}"
        return None


FLAG: Final = Key(kind=bool)
# Widths are multiples of 8: torch's grouped_mm wants every bf16 row to start on a 16-byte boundary.
WIDTH: Final = Key(kind=int, low=8, high=1 << 16, multiple_of=8)
HEAD_DIM: Final = Key(kind=int, low=2, high=1024, multiple_of=2)
TOKEN: Final = Key(kind=int, low=0, high=1 << 20, optional=True)

# Upper ends lie above every published model and keep a hostile number from building for hours.
COMMON: Final[Mapping[str, Key]] = {
    "vocab_size": Key(kind=int, low=2, high=1 << 20),
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": Key(kind=int, low=1, high=MAX_LAYERS),
    "num_attention_heads": Key(kind=int, low=1, high=512),
    "num_key_value_heads": Key(kind=int, low=1, high=512),
    "num_experts": Key(kind=int, low=1, high=4096),
    "num_experts_per_tok": Key(kind=int, low=1, high=256),
    "hidden_act": Key(kind=str),
    "max_position_embeddings": Key(kind=int, low=1, high=1 << 24),
    "initializer_range": Key(kind=float, low=1e-6, high=10.0),
    "rms_norm_eps": Key(kind=float, low=1e-12, high=1e-1),
    "tie_word_embeddings": FLAG,
    "router_aux_loss_coef": Key(kind=float, low=0.0, high=10.0),
    "pad_token_id": TOKEN,
    "bos_token_id": TOKEN,
    "eos_token_id": Key(kind=int, low=0, high=1 << 20, optional=True, many=True),
}
"""Named as we name them, whatever a class calls them (`Family.spelt`)."""
ESSENTIAL: Final = frozenset(
    {
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_experts", "num_experts_per_tok",
        "max_position_embeddings", "initializer_range", "tie_word_embeddings", "pad_token_id", "bos_token_id",
        "eos_token_id",
    }
)  # fmt: skip
"""Those that a family has whatever its class annotates: the rest of the project reads them."""

"""What a simulated run learns when it really trains: a synthetic language, and a micro mixture of experts for it.

Decides both, from a seed. Always: the same seed gives the same text on every machine; the least loss that any model can
have is known.

Legend: N sequences, L+1 tokens of each, C contexts, V words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from coordinator.datasets import Dataset
from moe.config import config_to_json
from moe.presets import preset
from protocol.ids import Digest

VOCABULARY = 32
SEQUENCE_LENGTH = 16
TRAIN_SEQUENCES = 60_000
HELDOUT_SEQUENCES = 512
CLASSES = 4
_CONCENTRATION = 0.1
"""Of the Dirichlet draws: low enough that few tokens are likely, so there is much to learn."""

MICRO: Mapping[str, Any] = {
    **config_to_json(preset("tiny", vocab_size=VOCABULARY)),
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 2 * SEQUENCE_LENGTH,
    "initializer_range": 0.1,
}
"""The shape of the preset `tiny` at about 15,000 parameters: 4 columns, of which a token visits 2."""


class Language(Dataset):
    """A Markov chain: what follows is drawn from few tokens, by the last one and the class (modulo 4) of that before.

    `entropy` is the least loss that any model can have on the held-out part, nats a token.
    """

    def __init__(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        chances_CV = draw.dirichlet(np.full(VOCABULARY, _CONCENTRATION), size=VOCABULARY * CLASSES)
        text_NL = _sequences(np.cumsum(chances_CV, axis=1), TRAIN_SEQUENCES + HELDOUT_SEQUENCES, draw)
        self.entropy = _entropy(chances_CV, text_NL[:HELDOUT_SEQUENCES])
        heldout, train = text_NL[:HELDOUT_SEQUENCES], text_NL[HELDOUT_SEQUENCES:]
        super().__init__(Path(), cast(Any, None), train.reshape(-1), heldout.reshape(-1))

    @property
    def digest(self) -> Digest:
        """Nobody compares it."""
        return Digest("0" * 64)

    @property
    def licence(self) -> str:
        """Nobody wrote it."""
        return "unknown"

    @property
    def tokenizer_json(self) -> bytes:
        """Each token is its number."""
        words = {str(number): number for number in range(VOCABULARY)}
        return json.dumps({"version": "1.0", "model": {"type": "WordLevel", "vocab": words, "unk_token": "0"}}).encode()


def _sequences(cumulated_CV: NDArray[np.float64], count: int, draw: np.random.Generator) -> NDArray[np.uint8]:
    """`count` sequences [N, L+1], each from a start of its own."""
    text_NL = np.zeros((count, SEQUENCE_LENGTH + 1), dtype=np.uint8)
    before_N, last_N = draw.integers(0, VOCABULARY, count), draw.integers(0, VOCABULARY, count)
    for position in range(SEQUENCE_LENGTH + 1):
        passed_NV = cumulated_CV[_context(before_N, last_N)] < draw.random(count)[:, None]
        before_N, last_N = last_N, np.minimum(passed_NV.sum(axis=1), VOCABULARY - 1)
        text_NL[:, position] = last_N
    return text_NL


def _context(before_N: NDArray[Any], last_N: NDArray[Any]) -> NDArray[np.int64]:
    context_N: NDArray[np.int64] = (before_N.astype(np.int64) % CLASSES) * VOCABULARY + last_N
    return context_N


def _entropy(chances_CV: NDArray[np.float64], text_NL: NDArray[np.uint8]) -> float:
    """Mean over the contexts that occur from the third token on."""
    entropy_C = -np.sum(chances_CV * np.log(np.maximum(chances_CV, 1e-300)), axis=1)
    return float(entropy_C[_context(text_NL[:, :-2], text_NL[:, 1:-1])].mean())

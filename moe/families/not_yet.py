"""Architectures of `transformers` with routed experts that have no row, each with the reason, in words for people.

Decides nothing; touches nothing. An architecture that gets a row leaves this table; `python -m moe.families.reference`
writes both down.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

NOT_YET: Final[Mapping[str, str]] = {
    "doge": (
        "its experts are rows of embeddings that are found by product keys: there is no router with a row an expert "
        "that columns could be cut by"
    ),
    "jetmoe": "its attention is made of routed experts, too, and those cannot be absent or frozen by themselves",
    "llama4_text": (
        "its experts compute every token, scaled before they do: what a shard leaves out is not left out of its "
        "multiplications, and top-1 gates are no weights of what comes out"
    ),
    "longcat_flash": (
        "its routers choose from experts that do nothing beside the others, and its two fused tensors differ in how "
        "many experts they have rows for"
    ),
    "phimoe": "its routers sample which experts to use while they train, so no lease could be replayed",
    "zaya": (
        "its routers are networks with a memory over layers and a class for no expert at all, so no row of them "
        "belongs to one expert"
    ),
}
"""By the `model_type` of config.json, in words that follow `architecture ... is not supported:`."""
COMPOSITE: Final = (
    "it is the configuration of a model of several parts (images, sound); take its language model by itself, whose "
    "model_type is {text!r}"
)
"""For a model_type whose text part has a row."""

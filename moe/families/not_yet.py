"""Architectures of `transformers` with routed experts that have no row, each with the reason, in a sentence for people.

Decides nothing; touches nothing. A key that gets a row leaves this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

NOT_YET: Final[Mapping[str, str]] = {}
"""By the `model_type` of config.json."""

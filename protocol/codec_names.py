"""What the codecs are called, for whoever lists them: names alone, since `--help` must not load seven codecs.

`protocol/codecs.py` has the codecs, in this order (a test holds both together). Touches nothing.
"""

from __future__ import annotations

from typing import Final

CODEC_NAMES: Final = ("bf16", "fp32", "int8", "int4", "two_bit", "ternary", "top_k")

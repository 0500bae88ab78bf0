"""Train mixture-of-experts models together, on the GPUs people already own."""

from __future__ import annotations

__version__ = "0.1.0"

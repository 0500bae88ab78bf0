"""Routing necessity of a row of `benchmarks.parity`: whether what it trained still needs its routers.

Of two models with the same loss one may have experts that became copies of each other: what random experts of equal
load cost it (`moe.necessity`), as a share of what they cost the model of central training, tells them apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

LOSS = "random_routing_loss"
"""What a kept result calls it; one that is older has none."""


def random_loss(run: Any, blocks: Any, sequences: int, device: str = "cpu") -> dict[str, float]:
    """The one figure that a result is given."""
    import torch

    from moe.full import full_model
    from moe.necessity import random_routing

    settings = run.settings()
    tokens_NL = torch.from_numpy(run.dataset().heldout_all(settings.sequence_length, sequences).astype("int64"))
    model: Any = full_model(run.layout(), blocks)
    model.to(device)
    return {LOSS: random_routing(model, tokens_NL, settings.evaluation_batch).loss}


def necessity_percent(own: Mapping[int, Mapping[str, Any]], central: Mapping[int, Mapping[str, Any]]) -> float | None:
    """Mean over the seeds that both have, of results by seed; None where there is none of them."""
    shares = [
        100.0 * (own[seed][LOSS] - own[seed]["val_loss"]) / (central[seed][LOSS] - central[seed]["val_loss"])
        for seed in own
        if seed in central and LOSS in own[seed] and LOSS in central[seed]
    ]
    return statistics.fmean(shares) if shares else None

"""Looks at the experts of the model that a simulation ended with: `health.json` and `health.png`.

Decides which tokens and which sets of columns are looked at: the held-out sequences of validation, and shards of the
size that this swarm's workers hold (half of the columns where nothing was said).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from barnraise.charts.health import draw_health
from simulator.processes.options import SimulationOptions

HEALTH_NAME, PICTURE_NAME = "health.json", "health.png"


def write_health(options: SimulationOptions, checkpoint: Path) -> dict[str, Any]:
    """Write both files into `options.out`; the figures in short."""
    import torch

    from coordinator.run.folder import RunFolder
    from moe.export import checkpoint_config, open_checkpoint
    from moe.health import column_sets, examine, usual_held

    run = RunFolder.open(options.work / "run")
    settings, layout = run.settings(), run.layout()
    tokens = run.dataset().heldout_all(settings.sequence_length, settings.heldout_limit)
    held = max(layout.top_k, options.columns_per_worker or usual_held(layout.experts, layout.top_k))
    health = examine(
        open_checkpoint(checkpoint, checkpoint_config(checkpoint)),
        torch.from_numpy(tokens.astype("int64")),
        batch=settings.evaluation_batch,
        column_sets=column_sets(layout.experts, held),
    )
    text = json.dumps(health.as_dict(), indent=2, allow_nan=False)
    (options.out / HEALTH_NAME).write_text(text + "\n", encoding="utf-8")
    title = f"experts after {options.rounds} rounds, {options.residency} residency, seed {options.seed}"
    draw_health(health, options.out / PICTURE_NAME, title=title)
    return health.summary()

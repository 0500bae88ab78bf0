"""The picture of the experts is drawn whatever there is to draw: sick models too."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from barnraise.charts.health import draw_health
from moe.findings import DeadExpert, ExpertHealth, LayerHealth, RoutingDrift


def example(layers: int = 2, columns: int = 4) -> ExpertHealth:
    one = LayerHealth(
        layer=0, routed=(10,) * columns, load=(1.0,) * columns, token_entropy=0.9, load_entropy=1.0,
        cosine=tuple(tuple(float(a == b) for b in range(columns)) for a in range(columns)),
    )  # fmt: skip
    drift = RoutingDrift(
        column_sets=((0, 1), (2, 3)), changed=0.5, changed_by_layer=(0.5,) * layers, kl=0.01,
        kl_by_layer=(0.01,) * layers, loss_gap=0.1, loss_gap_se=0.01,
    )  # fmt: skip
    return ExpertHealth(
        tokens=100, loss=2.0, loss_se=0.1, columns=columns, top_k=2, column_load=(1.0,) * columns,
        layers=tuple(dataclasses.replace(one, layer=number) for number in range(layers)), dead=(), duplicates=(),
        dead_load=0.05, duplicate_cosine=0.9, random_cosine=0.01, drift=drift, no_drift="",
    )  # fmt: skip


def sick() -> ExpertHealth:
    """One expert gets nothing, the other numbers are not finite."""
    health = example()
    ill = dataclasses.replace(
        health.layers[0], load=(0.0, 4.0, 0.0, 0.0), token_entropy=math.nan, cosine=((math.nan,) * 4,) * 4
    )
    assert health.drift is not None
    drift = dataclasses.replace(health.drift, kl_by_layer=(math.nan,) * 2, loss_gap=math.nan)
    dead = (DeadExpert(layer=0, column=0, load=0.0),)
    return dataclasses.replace(health, layers=(ill, health.layers[1]), dead=dead, drift=drift)


@pytest.mark.parametrize(
    "health",
    [
        example(),
        example(layers=1, columns=1),
        example(layers=20, columns=64),
        dataclasses.replace(example(), drift=None, no_drift="the gates are not renormalised"),
        sick(),
    ],
    ids=["small", "one expert", "large", "no drift", "sick"],
)
def test_the_picture_is_drawn(tmp_path: Path, health: ExpertHealth) -> None:
    draw_health(health, tmp_path / "health.png", title="a model")
    assert (tmp_path / "health.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "health.png").stat().st_size > 10_000

"""Draws `health.png`: who gets tokens, how sure the routers are, who is a copy of whom, what absence changes.

Decides the picture only; scales are fixed, so that two pictures can be compared. Uses matplotlib's Agg canvas directly:
no display, no global state.
"""

from __future__ import annotations

import math
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from moe.findings import ExpertHealth

_TOKEN, _LOAD, _CHANGED, _KL, _QUIET = "#1f6feb", "#bf8700", "#d1242f", "#8250df", "#57606a"
_LOAD_LIMIT_LOG2 = 3.0
"""Colours end at an eighth and at eight times the even share."""
_NUMBERS_UP_TO = 16
"""Columns up to which a cell has room for its number."""
_LAYER_IN = 0.34
"""Height of a layer's row, in inches."""


def draw_health(health: ExpertHealth, path: Path, *, title: str) -> None:
    """Write the picture of `health` to `path` (PNG)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers_in = min(7.0, max(1.9, 1.1 + _LAYER_IN * len(health.layers)))
    figure = Figure(figsize=(11.0, layers_in + 4.9), dpi=140, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    (load, entropy), (cosine, drift) = figure.subplots(2, 2, height_ratios=[layers_in, 4.2], width_ratios=[1.55, 1.0])
    _draw_load(figure, load, health)
    _draw_entropy(entropy, health)
    _draw_cosine(figure, cosine, health)
    _draw_drift(drift, health)
    figure.suptitle(f"{title}\n{health.tokens:,} held-out tokens, top {health.top_k} of {health.columns}", fontsize=11)
    canvas.print_figure(str(path), format="png")


def _draw_load(figure: Any, axes: Any, health: ExpertHealth) -> None:
    """Load by layer and column, on a logarithmic scale with the even share in its middle."""
    loads_LE = np.array([one.load for one in health.layers])
    with np.errstate(divide="ignore"):
        shown_LE = np.clip(np.log2(loads_LE), -_LOAD_LIMIT_LOG2, _LOAD_LIMIT_LOG2)
    image = axes.imshow(shown_LE, cmap="RdBu", vmin=-_LOAD_LIMIT_LOG2, vmax=_LOAD_LIMIT_LOG2, aspect="auto")
    dead = {(one.layer, one.column) for one in health.dead}
    for row, one in enumerate(health.layers):
        for column, load in enumerate(one.load):
            is_dead = (one.layer, column) in dead
            if not is_dead and health.columns > _NUMBERS_UP_TO:
                continue
            dark = abs(shown_LE[row, column]) > 0.6 * _LOAD_LIMIT_LOG2
            text = "✕" if is_dead else f"{load:.2f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    _columns(axes, health, "x")
    _layers(axes, health)
    low, high = health.load_range
    axes.set_title(
        f"load of each expert: {low:.2f} to {high:.2f} of an even share, {len(health.dead)} dead (✕)", fontsize=10
    )
    bar = figure.colorbar(image, ax=axes, ticks=range(-3, 4), extend="both")
    bar.ax.set_yticklabels(["⅛", "¼", "½", "1", "2", "4", "8"])
    bar.set_label("load")


def _draw_entropy(axes: Any, health: ExpertHealth) -> None:
    """Both entropies, a row for each layer as in the picture beside."""
    rows = range(len(health.layers))
    axes.plot(
        [one.load_entropy for one in health.layers],
        rows,
        "s-",
        color=_LOAD,
        ms=5,
        lw=1.2,
        label="of the load (1: even)",
    )
    axes.plot(
        [one.token_entropy for one in health.layers],
        rows,
        "o-",
        color=_TOKEN,
        ms=5,
        lw=1.2,
        label="of a token (1: no choice)",
    )
    axes.set_xlim(0.0, 1.03)
    axes.set_ylim(len(health.layers) - 0.5, -0.5)
    axes.set_xlabel("entropy / log(experts)")
    axes.set_title("routing entropy", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="best")
    _layers(axes, health)
    _quiet(axes, "x")


def _draw_cosine(figure: Any, axes: Any, health: ExpertHealth) -> None:
    """The largest cosine over the layers, for each pair of columns."""
    cosine_EE = np.max(np.array([one.cosine for one in health.layers]), axis=0)
    np.fill_diagonal(cosine_EE, np.nan)
    image = axes.imshow(cosine_EE, cmap="magma_r", vmin=0.0, vmax=1.0, aspect="equal")
    if health.columns <= _NUMBERS_UP_TO:
        for a, b in np.argwhere(np.isfinite(cosine_EE)):
            value = float(cosine_EE[a, b])
            color = "white" if value > 0.5 else _QUIET
            axes.text(b, a, f"{value:.2f}".replace("-0.00", "0.00"), ha="center", va="center", fontsize=7, color=color)
    _columns(axes, health, "x")
    _columns(axes, health, "y")
    axes.set_title(
        f"weights: cosine up to {health.largest_cosine:.2f} (random: 0 ± {health.random_cosine:.3f}), "
        f"{len(health.duplicates)} above {health.duplicate_cosine}",
        fontsize=10,
    )
    figure.colorbar(image, ax=axes).set_label("cosine, largest of all layers")


def _draw_drift(axes: Any, health: ExpertHealth) -> None:
    """What changes by layer where columns are absent."""
    from matplotlib.ticker import MaxNLocator

    drift = health.drift
    axes.set_title("routing with columns absent", fontsize=10)
    if drift is None:
        axes.set_axis_off()
        why = fill(f"not measured: {health.no_drift}", 44)
        axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, color=_QUIET, fontsize=9)
        return
    rows = np.arange(len(health.layers))
    axes.bar(rows, drift.changed_by_layer, width=0.6, color=_CHANGED, alpha=0.75)
    axes.set_ylim(0.0, 1.0)
    axes.set_ylabel("share of tokens sent to other experts", color=_CHANGED)
    axes.set_xlabel("layer")
    step = max(1, len(rows) // _NUMBERS_UP_TO)
    axes.set_xticks(rows[::step], [str(one.layer) for one in health.layers[::step]])
    other = axes.twinx()
    other.plot(rows, drift.kl_by_layer, "o-", color=_KL, ms=5, lw=1.2)
    other.set_ylim(0.0, max(0.01, 1.25 * max((kl for kl in drift.kl_by_layer if math.isfinite(kl)), default=0.0)))
    other.set_ylabel("KL(full ‖ absent), nats a token", color=_KL)
    axes.set_title(
        f"{len(drift.column_sets[0])} of {health.columns} columns there: "
        f"loss {drift.loss_gap:+.3f} ± {drift.loss_gap_se:.3f} nats",
        fontsize=10,
    )
    _quiet(axes, "y")
    other.yaxis.set_major_locator(MaxNLocator(5))
    other.spines[["top"]].set_visible(False)


def _columns(axes: Any, health: ExpertHealth, side: str) -> None:
    step = max(1, health.columns // _NUMBERS_UP_TO)
    ticks = list(range(0, health.columns, step))
    (axes.set_xticks if side == "x" else axes.set_yticks)(ticks)
    (axes.set_xlabel if side == "x" else axes.set_ylabel)("expert column")


def _layers(axes: Any, health: ExpertHealth) -> None:
    step = max(1, len(health.layers) // _NUMBERS_UP_TO)
    rows = list(range(0, len(health.layers), step))
    axes.set_yticks(rows, [str(health.layers[row].layer) for row in rows])
    axes.set_ylabel("layer")


def _quiet(axes: Any, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis=grid, alpha=0.25)

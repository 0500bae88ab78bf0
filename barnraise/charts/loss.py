"""Draws `loss.png`: held-out loss by round, the lone worker as a line, and what became of the submissions below it.

Decides the picture only. Uses matplotlib's Agg canvas directly: no display, no global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SWARM, _LONE, _REJECTED, _EXPIRED, _QUIET = "#1f6feb", "#d1242f", "#d1242f", "#bf8700", "#57606a"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fates:
    """What became of one round's leases."""

    round: int
    accepted: int
    rejected: int
    expired: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPicture:
    """What is drawn. Losses are held-out, in nats a token."""

    title: str
    val_loss: Sequence[float]
    """After each round, the first before any."""
    lone_val_loss: float | None
    rounds: Sequence[Fates]


def draw_loss(picture: LossPicture, path: Path) -> None:
    """Write the picture of `picture` to `path` (PNG)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8.0, 5.4), dpi=140, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    losses, fates = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1.0])
    _draw_losses(losses, picture)
    _draw_fates(fates, picture)
    fates.xaxis.set_major_locator(MaxNLocator(integer=True))
    fates.set_xlabel("rounds closed")
    figure.suptitle(picture.title, fontsize=11)
    for axes in (losses, fates):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, axis="y", alpha=0.25)
    canvas.print_figure(str(path), format="png")


def _draw_losses(axes: Any, picture: LossPicture) -> None:
    """Loss after each round; the first point is the untrained model."""
    axes.set_ylabel("held-out loss, nats a token")
    if picture.val_loss:
        label = f"swarm: {picture.val_loss[-1]:.3f}"
        axes.plot(range(len(picture.val_loss)), picture.val_loss, marker="o", ms=4, lw=1.8, color=_SWARM, label=label)
    if picture.lone_val_loss is not None:
        label = f"one honest worker alone, same steps: {picture.lone_val_loss:.3f}"
        axes.axhline(picture.lone_val_loss, color=_LONE, lw=1.3, ls="--", label=label)
    if picture.val_loss or picture.lone_val_loss is not None:
        axes.legend(frameon=False, fontsize=9)
    else:
        axes.text(0.5, 0.5, "no version was validated", ha="center", transform=axes.transAxes, color=_QUIET)


def _draw_fates(axes: Any, picture: LossPicture) -> None:
    """What became of each round's leases, as stacked bars."""
    positions = [record.round for record in picture.rounds]
    accepted = [record.accepted for record in picture.rounds]
    rejected = [record.rejected for record in picture.rounds]
    expired = [record.expired for record in picture.rounds]
    both = [a + r for a, r in zip(accepted, rejected, strict=True)]
    axes.set_ylabel("leases")
    if not positions:
        return
    axes.bar(positions, accepted, color=_SWARM, alpha=0.75, width=0.7, label="accepted")
    axes.bar(positions, rejected, bottom=accepted, color=_REJECTED, alpha=0.75, width=0.7, label="rejected")
    axes.bar(positions, expired, bottom=both, color=_EXPIRED, alpha=0.75, width=0.7, label="dropped out")
    axes.set_ylim(0, 1.45 * max(1, *(b + e for b, e in zip(both, expired, strict=True))))
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper right")

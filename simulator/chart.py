"""Draws `loss.png`: held-out loss by round, the lone worker as a line, and what became of the submissions below it.

Decides the picture only. Uses matplotlib's Agg canvas directly: no display, no global state.
"""

from __future__ import annotations

from pathlib import Path

from simulator.report import SimulationReport

_SWARM, _LONE, _REJECTED, _EXPIRED, _QUIET = "#1f6feb", "#d1242f", "#d1242f", "#bf8700", "#57606a"


def draw_loss(report: SimulationReport, path: Path) -> None:
    """Write the picture of `report` to `path` (PNG)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8.0, 5.4), dpi=140, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    losses, fates = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1.0])
    _draw_losses(losses, report)
    _draw_fates(fates, report)
    fates.xaxis.set_major_locator(MaxNLocator(integer=True))
    fates.set_xlabel("rounds closed")
    figure.suptitle(_title(report), fontsize=11)
    for axes in (losses, fates):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, axis="y", alpha=0.25)
    canvas.print_figure(str(path), format="png")


def _draw_losses(axes, report: SimulationReport) -> None:  # type: ignore[no-untyped-def]
    """Loss after each round; the first point is the untrained model."""
    axes.set_ylabel("held-out loss, nats a token")
    if report.val_loss:
        label = f"swarm: {report.val_loss[-1]:.3f}"
        axes.plot(range(len(report.val_loss)), report.val_loss, marker="o", ms=4, lw=1.8, color=_SWARM, label=label)
    if report.lone_val_loss is not None:
        label = f"one honest worker alone, same steps: {report.lone_val_loss:.3f}"
        axes.axhline(report.lone_val_loss, color=_LONE, lw=1.3, ls="--", label=label)
    if report.val_loss or report.lone_val_loss is not None:
        axes.legend(frameon=False, fontsize=9)
    else:
        axes.text(0.5, 0.5, "no version was validated", ha="center", transform=axes.transAxes, color=_QUIET)


def _draw_fates(axes, report: SimulationReport) -> None:  # type: ignore[no-untyped-def]
    """What became of each round's leases, as stacked bars."""
    positions = [record.round for record in report.rounds]
    accepted = [record.accepted for record in report.rounds]
    rejected = [record.rejected for record in report.rounds]
    expired = [record.expired for record in report.rounds]
    both = [a + r for a, r in zip(accepted, rejected, strict=True)]
    axes.set_ylabel("leases")
    if not positions:
        return
    axes.bar(positions, accepted, color=_SWARM, alpha=0.75, width=0.7, label="accepted")
    axes.bar(positions, rejected, bottom=accepted, color=_REJECTED, alpha=0.75, width=0.7, label="rejected")
    axes.bar(positions, expired, bottom=both, color=_EXPIRED, alpha=0.75, width=0.7, label="dropped out")
    axes.set_ylim(0, 1.45 * max(1, *(b + e for b, e in zip(both, expired, strict=True))))
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper right")


def _title(report: SimulationReport) -> str:
    parts = [f"{report.workers} workers", f"{report.dropout:.0%} dropout a round"]
    if report.byzantine:
        parts.append(f"{report.byzantine} {report.attack}")
    parts.append("undefended: plain mean" if report.undefended else "screened")
    parts.append(f"seed {report.seed}")
    return ", ".join(parts)

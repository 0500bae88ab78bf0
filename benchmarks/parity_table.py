"""The table of `benchmarks.parity` from its results: means over seeds, their errors, and distances paired by seed.

Pure arithmetic: trains nothing, touches nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.parity_routing import necessity_percent
from benchmarks.parity_rows import ParityCase
from benchmarks.report import Cell
from protocol.codecs import CODECS

STUDENT_95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895)
"""What a mean lies below in 95 of 100 cases, in standard errors, from two pairs to eight (Student's t, one-sided)."""


def table(cases: Sequence[ParityCase], results: Sequence[Mapping[str, Any]]) -> list[dict[str, Cell]]:
    """One row for each case: mean over seeds, its standard error, and the paired distance to what it is against."""
    by_row: dict[str, dict[int, Mapping[str, Any]]] = {}
    for result in results:
        by_row.setdefault(result["row"], {})[result["seed"]] = result
    rows: list[dict[str, Cell]] = []
    for case in cases:
        own, other = by_row.get(case.name, {}), by_row.get(case.against, {})
        losses = [result["val_loss"] for result in own.values()]
        over = [100.0 * (own[seed]["val_loss"] / other[seed]["val_loss"] - 1.0) for seed in own if seed in other]
        mean, error = mean_and_se(losses)
        accepted = _mean_of(own, "accepted")
        over_mean, over_error = mean_and_se(over)
        rows.append(
            {
                "row": case.name,
                "setting": case.setting,
                "codec": case.codec,
                "bits": CODECS[case.codec].bits_per_parameter,
                "dropout": case.dropout,
                "moments": case.moments,
                "slowest": case.slowest,
                "seeds": len(losses),
                "val_loss": mean,
                "val_loss_se": error,
                "over_percent": over_mean,
                "over_se": over_error,
                "over_upper": upper_bound(over),
                "against": case.against,
                "routing_percent": necessity_percent(own, by_row.get("central", {})),
                "sent": None if accepted is None else accepted + (_mean_of(own, "rejected") or 0.0),
                "rejected": _mean_of(own, "rejected"),
                "expired": _mean_of(own, "expired"),
                "sequences": _mean_of(own, "sequences"),
                "blocks": " ".join(str(own[seed]["blocks"])[:12] for seed in sorted(own) if "blocks" in own[seed]),
                "cpu_s": _mean_of(own, "wall_s"),
            }
        )
    return rows


def mean_and_se(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and its standard error; None where there is too little for it."""
    if not values:
        return None, None
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def upper_bound(values: Sequence[float]) -> float | None:
    """Of the mean, one-sided, with 95 % confidence; None for one value, and for more than eight."""
    mean, error = mean_and_se(values)
    if mean is None or error is None or len(values) - 2 >= len(STUDENT_95):
        return None
    return mean + STUDENT_95[len(values) - 2] * error


def _mean_of(results: Mapping[int, Mapping[str, Any]], key: str) -> float | None:
    values = [float(result[key]) for result in results.values() if key in result]
    return statistics.fmean(values) if values else None

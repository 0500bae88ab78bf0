"""What stopping early costs and saves: gains of real leases, honest and spoilt, resampled by whole and by early looks.

    python -m benchmarks.early_stops [--quick] [--json FILE]

Micro runs (those of `benchmarks.honest`) are played, and each submission's losses on all of its round's held-out
sequences are kept, as it was sent and as liars would have sent it. Then rounds are played again and again: sequences
are drawn anew with replacement, the same for all of a round; submissions come in another order; one is a liar's; each
is measured by the coordinator's own code and judged by the engine's own functions, first look and second. Both ways in
the same draws. Rows: what the liar sent; honest submissions and liars, shares refused; sequences used, `most` being
what half of the honest needed at most, and `tenth` the share of them that needed a tenth of the draw at most. `wrongly`
is the error that matters: shares of liars refused by the whole draw alone.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import structlog
import torch

from benchmarks.honest import HonestCase, Micro
from benchmarks.report import Cell, machine, parse_args, print_rows, write_json
from coordinator.engine.commands import MeasureSubmission
from coordinator.engine.config import ScreeningConfig
from coordinator.engine.early_stops import bounds
from coordinator.engine.history import UsualGain
from coordinator.engine.screening import MIN_GAINS, Measured, Peers, judge_gain, judge_harm
from coordinator.work import gains
from coordinator.work.measured import Gains

CASES = {"leases of 4 steps": (4, 24), "leases of 50 steps": (50, 8)}
QUICK = {"leases of 4 steps": (4, 8)}
SEQUENCES = 64
SPARSE_SHARE, SPARSE_HARM = 0.05, 4.0
"""A liar that spoils few sequences, and those thoroughly: 0.2 nats a token on average at a quarter."""
LIARS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nothing wrong": lambda sent: sent,
    "sign flipped": torch.neg,
    "noise of its length": lambda sent: torch.randn_like(sent) * sent.norm() / sent.numel() ** 0.5,
    "a tenth of it": lambda sent: 0.1 * sent,
    "ten times it": lambda sent: 10.0 * sent,
}
SPARSE = "one sequence in twenty spoilt"


@dataclass(frozen=True, slots=True)
class KeptGains:
    """One submission of a run: gains on each of its round's sequences, by what was sent, after a part and after all."""

    command: MeasureSubmission
    part: dict[str, torch.Tensor]
    full: dict[str, torch.Tensor]


def main() -> None:
    """Play, resample and print."""
    args = parse_args(__doc__ or "")
    torch.set_num_threads(1)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    rows: list[dict[str, Cell]] = []
    for name, (steps, rounds) in (QUICK if args.quick else CASES).items():
        kept = collected(HonestCase(steps=steps, rounds=rounds, seed=1))
        rows += [row(name, kept, liar, times=10 if args.quick else 15) for liar in (*LIARS, SPARSE)]
        print_rows(rows)
    print(machine())
    if args.json is not None:
        write_json(args.json, rows)


def collected(case: HonestCase) -> list[list[KeptGains]]:
    """A run's submissions, by round."""
    rounds: dict[int, list[KeptGains]] = {}
    measured = gains.GainMeasure.of

    def of(self: gains.GainMeasure, command: MeasureSubmission, digest: Any, load: gains.Load) -> Gains:
        tokens_NL = self.drawn(command, gains.WHERE_IN_DOUBT)
        before_N = self.losses(load(0.0), tokens_NL)
        shares = {"part": command.part, "full": command.taken}
        found: dict[str, dict[str, torch.Tensor]] = {end: {} for end in shares}
        for liar, spoil in LIARS.items():
            for end, share in shares.items():
                found[end][liar] = before_N - self.losses(_spoilt(load, share, spoil), tokens_NL)
        rounds.setdefault(command.lease.round, []).append(KeptGains(command, found["part"], found["full"]))
        return measured(self, command, digest, load)

    gains.GainMeasure.of = of  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory(prefix="barnraise-early-") as folder:
            print(Micro(Path(folder)).row(case, Path(folder) / "run"), flush=True)
    finally:
        gains.GainMeasure.of = measured  # type: ignore[method-assign]
    return [rounds[number] for number in sorted(rounds)]


@torch.no_grad()
def _spoilt(load: gains.Load, share: float, spoil: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The model that takes the spoilt submission: what was sent is the difference of two models."""
    base = {name: tensor.clone() for name, tensor in load(0.0).named_parameters()}
    model = load(share)
    torch.manual_seed(len(base))
    for name, tensor in model.named_parameters():
        tensor.copy_(base[name] - spoil(base[name] - tensor))
    return model


class _Drawn(gains.GainMeasure):
    """Measures by what was kept: a round's draw is a list of places in it, and losses are looked up."""

    def __init__(self, places_N: np.ndarray[Any, Any]) -> None:
        self._places_N = places_N

    def drawn(self, command: MeasureSubmission, times: int) -> Any:
        """Places, in place of sequences."""
        return self._places_N[: times * SEQUENCES]

    def before(self, *_: Any) -> torch.Tensor:
        """All is told as a gain."""
        return torch.zeros(1, dtype=torch.float64)

    def losses(self, model: Any, tokens_NL: Any) -> torch.Tensor:
        """`model` is the gains of one end."""
        return -torch.as_tensor(model)[torch.from_numpy(tokens_NL)]

    def _own(self, command: MeasureSubmission) -> Any:
        return ()


def row(name: str, kept: list[list[KeptGains]], liar: str, times: int) -> dict[str, Cell]:
    """Resample all rounds so many times."""
    draw, config = random.Random(f"{name} {liar}"), ScreeningConfig()
    told: dict[str, list[tuple[bool, bool, int]]] = {"whole": [], "early": []}
    for _ in range(times):
        usual: dict[str, UsualGain | None] = {"whole": None, "early": None}
        for together in kept:
            places_N = np.array(draw.choices(range(len(together[0].part["nothing wrong"])), k=4 * SEQUENCES))
            order = draw.sample(together, len(together))
            lies = draw.randrange(len(order)) if liar != "nothing wrong" else -1
            for way in told:
                found, usual[way] = _round(config, way, order, lies, liar, places_N, usual[way])
                told[way] += found
    honest = {way: [one for one in found if not one[0]] for way, found in told.items()}
    lied = {way: [one for one in found if one[0]] for way, found in told.items()}
    used = [one[2] for one in honest["early"]]
    missed = [a[1] and not b[1] for a, b in zip(lied["whole"], lied["early"], strict=True)]
    cells: dict[str, Cell] = {"leases": name, "liar_sent": liar, "honest": len(used), "liars": len(missed)}
    for way in told:
        cells[f"honest_refused_{way}"] = fmean(one[1] for one in honest[way])
        cells[f"liars_refused_{way}"] = fmean(one[1] for one in lied[way]) if missed else None
        cells[f"sequences_{way}"] = fmean(one[2] for one in honest[way])
        cells[f"liars_sequences_{way}"] = fmean(one[2] for one in lied[way]) if missed else None
    cells["wrongly"] = fmean(missed) if missed else None
    return {**cells, "most": median(used), "tenth": fmean(count <= SEQUENCES / 10 for count in used)}


def _round(
    config: ScreeningConfig,
    way: str,
    order: list[KeptGains],
    lies: int,
    liar: str,
    places_N: Any,
    usual: UsualGain | None,
) -> tuple[list[tuple[bool, bool, int]], UsualGain | None]:
    """Whether each lied, was refused, and on how many sequences; and what the next round takes for usual."""
    measured: list[Gains] = []
    accepted: list[Gains] = []
    stands: list[bool] = []
    for place, one in enumerate(order):
        early = bounds(config, _usual(accepted) or usual, 1.0) if way == "early" else None
        found = _measured(one, liar if place == lies else "nothing wrong", places_N, early)
        first = [gain.part for gain in accepted]
        peers = Peers(gain=Measured(gain=median(first), se=0.0) if len(first) >= MIN_GAINS else None)
        stands.append(judge_gain(config, Measured(gain=found.part, se=found.part_se), peers, 1.0) is None)
        measured.append(found)
        accepted += [found] if stands[-1] else []
    told = []
    for place, found in enumerate(measured):
        others = [one for at, one in enumerate(measured) if stands[at] and at != place]
        told.append((place == lies, not (stands[place] and _again(config, found, others)), _sequences(found)))
    return told, _usual(accepted) or usual


def _again(config: ScreeningConfig, found: Gains, others: list[Gains]) -> bool:
    gain, full = Measured(gain=found.part, se=found.part_se), Measured(gain=found.full, se=found.full_se)
    peers = Peers()
    if len(others) >= MIN_GAINS:
        peers = Peers(
            gain=Measured(gain=median(one.part for one in others), se=median(one.part_se for one in others)),
            full=Measured(gain=median(one.full for one in others), se=median(one.full_se for one in others)),
        )
    return judge_gain(config, gain, peers, 1.0) is None and judge_harm(config, full, peers) is None


def _measured(one: KeptGains, sent: str, places_N: Any, early: Any) -> Gains:
    command = replace(one.command, early=early, own_data=False)
    ends = {command.part: one.part, command.taken: one.full}
    honest_or_not = "nothing wrong" if sent == SPARSE else sent
    tables = {share: found[honest_or_not] for share, found in ends.items()}
    if sent == SPARSE:
        hit = max(1, round(SPARSE_SHARE * len(tables[command.part])))
        for share, table in tables.items():
            tables[share] = table.clone()
            tables[share][:hit] -= SPARSE_HARM * share / command.part
    return _Drawn(places_N).of(command, one.command.digest, tables.__getitem__)


def _usual(accepted: list[Gains]) -> UsualGain | None:
    if len(accepted) < MIN_GAINS:
        return None
    spread = median(one.part_spread for one in accepted)
    return UsualGain(gain=median(one.part for one in accepted), spread=spread)


def _sequences(found: Gains) -> int:
    return found.part_sequences + found.full_sequences


if __name__ == "__main__":
    main()

"""The trust region of the outer step: which new versions are published, and which are withheld as worse than before.

Decides what a new version is compared with (its parent, and the best version of the latest `TrustRegionConfig.window`
rounds), and whether what was measured is worse than either beyond the error of measuring *and* a share of the loss that
honest training moves by; and that a version which is surely neither is measured no further. Holds always: whatever one
round may lose, ten may lose no more, since the best of them stays what is compared with, until it is so many rounds
old; a version that is better than its parent is published, so that a run which has lost something may climb back.
Classical trust regions shrink what they refuse (Conn, Gould, Toint 2000, "Trust Region Methods", chapter 6); what
follows here is in `withholding.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.engine.commands import AggregateRound, PublishedVersion, Remedy
from coordinator.engine.config import EngineConfig, TrustRegionConfig
from coordinator.engine.draws import Draws
from coordinator.engine.enough import RegionStop
from coordinator.engine.events import RoundAggregated, VersionComparison
from coordinator.engine.history import VersionLevel
from coordinator.engine.reasons import Case, Reason, reason
from coordinator.engine.state import EngineState


def compared_with(state: EngineState) -> tuple[PublishedVersion, ...]:
    """The parent of the version that the present round makes, and the best of late where that is another one."""
    if not is_on(state.config):
        return ()
    parent = PublishedVersion(version=state.version, manifest=state.manifest)
    best = next(iter(_in_window(state)), None)  # levels fall from each to the next
    if best is None or best.version == state.version:
        return (parent,)
    return (parent, PublishedVersion(version=best.version, manifest=best.manifest))


def seed_of(config: EngineConfig, draws: Draws, round_number: int) -> int:
    """Secret draw of the sequences that versions are compared on: the same for a window's rounds.

    So a version is measured once, as the new one, and is known where it is the parent, or the best.
    """
    return draws.seed(round_number // config.region.window, "region")


def early_stop(config: TrustRegionConfig) -> RegionStop | None:
    """When comparing a round's first version may stop before the whole draw."""
    if config.early_margin <= 0.0:
        return None
    return RegionStop(margin=config.margin, tolerance=config.tolerance, early_margin=config.early_margin)


def is_on(config: EngineConfig) -> bool:
    """Whether new versions are measured before they are published."""
    return config.region.enabled and config.screening.enabled


def why_withheld(config: TrustRegionConfig, compared: Sequence[VersionComparison]) -> Reason | None:
    """Why the new version is withheld; None where it is to be published. `compared`: with the parent first."""
    if not compared or compared[0].gain >= 0.0:
        return None
    for one in compared:
        if is_worse(config.margin, config.tolerance, one):
            most = _most_rise(config.margin, config.tolerance, one)
            figures = {"version": one.version, "rise": -one.gain, "error": one.gain_se, "most": most}
            return reason(Case.WORSE_VERSION, **figures)
    return None


def is_worse(margin: float, tolerance: float, one: VersionComparison) -> bool:
    """Whether the newer one is worse beyond both errors: of measuring, and of training."""
    return not -one.gain <= _most_rise(margin, tolerance, one)


def note_published(state: EngineState, command: AggregateRound, event: RoundAggregated) -> None:
    """`event`'s version is the run's now: later ones are compared with it, or with a better one before it."""
    of_search = command.remedy in {Remedy.NONE, Remedy.WITHOUT_HARMFUL}
    state.withheld_in_row = 0 if of_search else state.withheld_in_row + 1
    if not event.compared:
        state.standings = ()
        return
    known = {one.version: one.level for one in state.standings}
    level = known.get(command.parent_version, 0.0)
    parent = VersionLevel(
        version=command.parent_version, manifest=command.parent_manifest, round=state.round.round, level=level
    )
    before = _in_window(state) if command.parent_version in known else (parent,)
    newest = VersionLevel(
        version=event.version,
        manifest=event.manifest,
        round=state.round.round,
        level=level + event.compared[0].gain,
    )
    state.standings = (*(one for one in before if one.level > newest.level), newest)


def _in_window(state: EngineState) -> tuple[VersionLevel, ...]:
    oldest = state.round.round - state.config.region.window
    return tuple(one for one in state.standings if one.round >= oldest or one.version == state.version)


def _most_rise(margin: float, tolerance: float, one: VersionComparison) -> float:
    return max(margin * one.gain_se, tolerance * abs(one.loss))

"""The rows of `benchmarks.byzantine`: who attacks whom, behind which defence, on which shards. Data alone.

A defence is a table of the engine's settings, over the run's own; whoever builds a stage adds its switch in a line.
What a goal is, and whether a row meets it, is decided here, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from simulator.adversaries.byzfl import BYZFL_ATTACKS
from simulator.adversaries.table import ATTACKS

HUGE: Final = 1e9
"""Above every norm and gain there is: a threshold that is switched off."""
UNSCREENED: Final[Mapping[str, Any]] = {"screening": {"enabled": False}, "clip_to_median": False}

DEFENCES: Final[dict[str, Mapping[str, Any]]] = {
    "pipeline": {"audits": {"budget": 16.0}},
    "thrifty": {"audits": {"budget": 1.0}},
    "open": {"open_run": True, "audits": {"budget": 1.0}},
    "undefended": {"rule": "mean", **UNSCREENED},
    "median": {"rule": "median", **UNSCREENED},
    "multi-krum": {"rule": "multi_krum", **UNSCREENED},
    "centered-clipping": {"rule": "centered_clipping", **UNSCREENED},
    # the pipeline with one stage switched off
    "no-norms": {
        "audits": {"budget": 16.0},
        "screening": {
            "max_norm_factor": HUGE,
            "max_column_norm_factor": HUGE,
            "max_base_factor": HUGE,
            "min_norm_factor": 0.0,
            "min_column_norm_factor": 0.0,
        },
    },
    "no-gain": {
        "audits": {"budget": 16.0},
        "screening": {
            "min_heldout_gain": -HUGE,
            "min_heldout_gain_share": 0.0,
            "max_lone_loss": HUGE,
            "max_peer_loss": HUGE,
        },
    },
    "no-rule": {"audits": {"budget": 16.0}, "rule": "mean", "clip_to_median": False},
    "no-region": {"audits": {"budget": 16.0}, "region": {"enabled": False}},
    "no-trust": {"audits": {"budget": 16.0}, "reputation": {"first_weight": 1.0, "quarantine_share": 1.0}},
    "no-audits": {"audits": {"budget": 0.0}},
}
"""By name, settings of the engine over the benchmark's own. `undefended` is the plain mean, also as a baseline;
`pipeline` can pay for every audit, `thrifty` for one lease of sixteen a round, `open` for one, too, as an open run does
whose operator changed nothing: there who was not vouched for weighs nothing."""
BASELINES: Final = ("undefended", "median", "multi-krum", "centered-clipping")
STAGES: Final = tuple(name for name in DEFENCES if name.startswith("no-"))

SHARDS: Final[dict[str, int]] = {"whole": 0, "halves": 4, "three": 2}
"""Columns of eight that a worker holds (0: all): everybody, half of the swarm, or about three hold each column."""
NOBODY: Final = "nobody"
"""The attack of a run from which the liars are absent."""

MOST_COST: Final[dict[tuple[int, int], float]] = {(16, 4): 0.01, (16, 5): 0.03, (3, 2): 0.05}
"""What an attack may cost at most, as a share of the loss without the liars, by (n, f)."""
MOST_TRIGGERED: Final = 0.03
"""By how much the trigger may work more often than on a clean model."""
LEAST_HARM: Final = 0.004
"""A loss within this share of the clean one is nothing: what does no more undefended was not shown to be an attack."""
LEAST_TRIGGERED: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ByzantineCase:
    """One run."""

    attack: str
    """A name as `--attack` takes it, or NOBODY."""
    defence: str
    shards: str = "whole"
    codec: str = "bf16"
    n: int = 16
    f: int = 4
    trusted: int = 0
    """Of the honest ones, how many were invited as trusted."""
    seed: int = 0

    @property
    def absent(self) -> ByzantineCase:
        """The same run without its liars."""
        return ByzantineCase(
            attack=NOBODY,
            defence=self.defence,
            shards=self.shards,
            codec=self.codec,
            n=self.n,
            f=self.f,
            trusted=self.trusted,
            seed=self.seed,
        )


QUICK_ATTACKS: Final = (
    "alie",
    "backdoor",
    "fast-liars",
    "half-steps",
    "hugging",
    "inner-product",
    "late",
    "never-delivers",
    "sign-flip",
    "spoilt-rows",
    "zeroed-columns",
)
SELDOM_AUDITED: Final = ("backdoor", "half-steps", "hugging")
"""What audits alone find: played with few of them, too."""
ALONE: Final = ("alie", "sign-flip", "spoilt-rows")
"""Attacks of two liars of three, one of whom the operator trusts."""
WORST: Final = 10


def quick_cases(attacks: Sequence[str] = QUICK_ATTACKS) -> list[ByzantineCase]:
    """Fifteen minutes on two cores: whole models, undefended and defended; and two of three beside a trusted one."""
    seldom = [attack for attack in SELDOM_AUDITED if attack in attacks]
    by_defence = {"undefended": attacks, "pipeline": attacks, "thrifty": seldom, "open": seldom}
    many = [ByzantineCase(attack=a, defence=defence) for defence, played in by_defence.items() for a in played]
    return [*many, *_two_of_three(attacks)]


def _two_of_three(attacks: Sequence[str]) -> list[ByzantineCase]:
    return [
        ByzantineCase(attack=a, defence=defence, n=3, f=2, trusted=1)
        for defence in ("pipeline", "no-audits")
        for a in ALONE
        if a in attacks
    ]


def all_cases(attacks: Sequence[str] = (*ATTACKS, *BYZFL_ATTACKS)) -> list[ByzantineCase]:
    """The whole list at n = 16, f = 4, one seed; and two of three beside a trusted one."""
    undefended = [ByzantineCase(attack=attack, defence="undefended") for attack in attacks]
    defended = [ByzantineCase(attack=a, defence="pipeline", shards=shards) for shards in SHARDS for a in attacks]
    seldom = [
        ByzantineCase(attack=a, defence=defence)
        for defence in ("thrifty", "open")
        for a in SELDOM_AUDITED
        if a in attacks
    ]
    return [*undefended, *defended, *seldom, *_two_of_three(attacks)]


def worst_cases(
    rows: Iterable[Mapping[str, Any]], seeds: Sequence[int] = (0, 1, 2), most: int = WORST
) -> list[ByzantineCase]:
    """The few that cost the pipeline most, at f = 5: defended by all seeds, other ways by one."""
    harm: dict[str, float] = {}
    for row in rows:
        if row["defence"] == "pipeline" and row["n"] == 16 and row["attack"] != NOBODY:
            triggered = 0.0 if row["trigger_rate"] is None else row["trigger_rate"] - (row["trigger_clean"] or 0.0)
            cost = max(row["loss_ratio"] - 1.0, triggered / 3.0)  # three points of a trigger are one percent of loss
            harm[row["attack"]] = max(cost, harm.get(row["attack"], -1.0))
    worst = sorted(harm, key=lambda attack: -harm[attack])[:most]
    defended = [ByzantineCase(attack=a, defence="pipeline", f=5, seed=seed) for a in worst for seed in seeds]
    others = [
        ByzantineCase(attack=a, defence=defence, f=5, seed=seeds[0]) for a in worst for defence in (*BASELINES, *STAGES)
    ]
    return [*defended, *others]


def misses(row: Mapping[str, Any]) -> str:
    """Which goal a defended row misses, in a word; empty where it meets all, or has none."""
    defended = row["defence"] in {"pipeline", "thrifty", "open"} or row["n"] == 3
    if not defended or row["attack"] == NOBODY:
        return ""
    found = []
    most = MOST_COST.get((row["n"], row["f"]))
    if most is not None and row["loss_ratio"] + (row.get("loss_ratio_se") or 0.0) > 1.0 + most:
        found.append("loss")
    if row["trigger_rate"] is not None and row["trigger_rate"] - (row["trigger_clean"] or 0.0) > MOST_TRIGGERED:
        found.append("trigger")
    return ", ".join(found)


def hurts(row: Mapping[str, Any]) -> bool:
    """Whether an undefended row shows that its attack is one."""
    triggered = row["trigger_rate"] is not None and row["trigger_rate"] - (row["trigger_clean"] or 0) > LEAST_TRIGGERED
    return not row["loss_ratio"] < 1.0 + LEAST_HARM or triggered

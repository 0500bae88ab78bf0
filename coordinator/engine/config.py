"""What an operator may set about rounds, leases, quorum and screening: one frozen model, validated once.

Times are seconds, lengths are sequences or inner steps. Nothing here is read from the environment. What the schedules
mean in each round is in `schedules.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from coordinator.engine.codec_rules import combination_problems
from coordinator.engine.delegation_config import DelegationConfig, delegation_problems
from coordinator.engine.down_config import DownConfig, down_problems
from coordinator.engine.trust_config import ReputationConfig, reputation_problems
from protocol.codecs import BF16
from protocol.errors import ConfigError
from protocol.ids import RunId
from protocol.recipe import MAX_INNER_STEPS, Recipe, breaches

SCHEDULES = ("cosine", "linear", "constant")
"""How a learning rate may fall; schedules.py has their formulas."""
MAX_COLUMNS = 65_536
"""Far above any model's experts: what is counted by column has room for so many and no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerRecipe(Recipe):
    """The recipe that a run begins with, how much a lease trains by it, and how it changes from round to round."""

    inner_steps: int = 10
    """Optimizer steps of a whole lease."""
    final_inner_steps: int | None = None
    """The last round's number, moved to by equal ratios from round to round; None: `inner_steps` in every round."""
    batch_sequences: int = 16
    """Sequences an inner step. Deadlines follow speeds measured before a change: double it at most, at a time."""
    schedule: str = "cosine"
    """How the learning rate falls over the run's rounds: `cosine`, `linear` or `constant` (not at all)."""
    final_lr_share: float = 0.05
    """The last round's rate, as a share of `learning_rate`."""
    decay_share: float = 1.0
    """Share of the rounds (after the warm-up), at the end, over which it falls; before them it is `learning_rate`."""
    warmup_rounds: int = 0
    """First rounds over which it rises to `learning_rate`: what training on from a checkpoint wants."""
    lora_epoch_rounds: int = 8
    """So many rounds move a `lora` trunk's matrices in the same few directions; then its fixed factors are others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreeningConfig:
    """Thresholds of the cheap checks. `enabled=False` is for experiments that show what screening is worth."""

    enabled: bool = True
    """Whether submissions are measured and judged."""
    max_norm_factor: float = 3.0
    """Refused when the norm, at common steps and rates, is over this many times what it is held against."""
    min_norm_factor: float = 0.25
    """Refused when it is under this share of it: little was trained. Honest ones are at 0.6 and above."""
    min_heldout_gain: float = 0.0
    """Refused when a quarter of what the round may take of it lowers held-out loss by less (nats a token)."""
    gain_error_margin: float = 3.0
    """Standard errors of the gain that speak for the worker: late in a run an honest gain is within its noise."""
    max_doubt: float = 0.1
    """Most that errors of measuring may forgive, in nats a token: harm to few sequences has a large error."""
    max_lone_loss: float = 0.5
    """Refused when all that the round may take of it raises held-out loss by more (nats a token), and fewer than two
    others hold the same."""
    max_peer_loss: float = 0.25
    """Refused when that is more than this above three times what the median of two or more others does."""
    max_base_factor: float = 30.0
    """Refused when a block would move by over this many times the length of its own weights; needs no history."""
    min_heldout_gain_share: float = 0.25
    """Refused, too, when the gain is under this share of the round's running median gain."""
    max_column_norm_factor: float = 9.0
    """The same for a single expert column, whose honest norms differ more (clipping takes care of the rest)."""
    min_column_norm_factor: float = 0.15
    """And the least, where another holder of the column in the round has more: nobody's is 0 while others' are not."""
    norm_history: int = 64
    """Norms of a block that are remembered."""
    doubt_rate: float = 1e-4
    """Probability with which a worker that is as its peers may ever be doubted, for each of the sequential tests."""
    gain_shortfall: float = 0.2
    """Share of its peers' gain by which a worker must fall short, again and again, to be doubted."""
    early_margin: float = 2.0
    """Standard errors above what would be forgiven at which a gain is measured no further. 0: always on the whole
    draw."""
    own_data_share: float = 0.25
    """Share of the rounds, drawn in secret, in which gains on a lease's own sequences are measured, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """Which leases are computed again to see whether they were computed at all, and how close that has to come."""

    budget: float = 0.0
    """Whole leases' work that audits may take a round, whoever does them; 0: no audits. What a round leaves of it the
    next one may spend, one round's worth at most."""
    by_coordinator: bool = True
    """The coordinator computes leases again itself. False where it has no such machine: trusted workers alone do."""
    first: int = 10
    """Of each worker so many leases are audited with certainty, as far as the budget goes."""
    least_probability: float = 0.05
    """That a lease is audited however long its worker's record."""
    tolerance: float = 0.02
    """Relative L2 distance, trunk and columns apart, up to which an honest lease computed again may differ."""
    decisive_steps: int = 20
    """Most inner steps, in fp32, for which a distance beyond the tolerance counts against a worker that computed in
    another arithmetic class than its auditor: there honest ones were below 0.001 whatever they learnt from
    (results/replay_noise.json). Of longer leases, and of others than fp32, only an auditor of the worker's own class
    can say that it lied."""
    unpaid_weight: float = 0.5
    """Share of its weight that a submission keeps in a closed run which was drawn and could not be audited before it
    counts. In open runs it keeps none."""
    wait_s: float = 300.0
    """A trusted worker that is idle takes an audit at once. After so long one takes it before a lease of its own, and
    at once where another auditor could not reproduce it."""
    keep_rounds: int = 3
    """Rounds after its own in which a lease may still be audited: so long are its bytes kept, and the version it began
    from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRegionConfig:
    """How much worse than its parent, and than the best of late, a version may be on held-out data and be published."""

    enabled: bool = True
    """Whether versions are compared before they are published; never while screening is off."""
    margin: float = 5.0
    """Standard errors of the difference, sequences paired, that are noise of measuring."""
    tolerance: float = 0.005
    """Share of the held-out loss that is noise of training: what is worse by less is published, however sure it is."""
    window: int = 10
    """Rounds whose best version counts, besides the parent; a secret draw of sequences serves so many rounds."""
    passes: int = 16
    """Models that are measured, at most, to find out which contributions harm."""
    early_margin: float = 3.0
    """Standard errors above what would be withheld at which a new version is measured no further. 0: on the whole draw
    always."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything that decides how rounds go. In the journal's first event; `changes.py` says what changes later."""

    run_id: RunId
    columns: int
    train_sequences: int
    """Sequences in the dataset's training part; a lease names positions below this number."""
    codec: str = BF16.name
    """What leases have submissions encoded in."""
    open_run: bool = False
    """Links go to people whom nobody knows: newcomers have no weight until audits have vouched for them."""
    max_rounds: int = 20
    """After so many rounds the run is over; rates and steps that follow a schedule reach their end then."""
    min_columns: int = 1
    """Fewest columns a lease may hold (the router's top-k where absent experts are left out of the shard)."""
    replicas: int = 3
    """Wanted submissions a column; with fewer workers, visibly fewer."""
    quorum: int = 2
    """Accepted submissions that close a column, lowered to what was leased when fewer workers are there."""
    most_grants: int = 256
    """Leases that one decision grants at most, so that no event waits long behind a round's first wave."""
    redraw: int = 1
    """Members of each column's replica set that are drawn anew each round."""
    min_workers: int = 1
    """Workers that must be waiting before the run's first lease is granted."""
    gather_s: float = 2.0
    """How long the first round waits for more workers than `min_workers`, and a later one, at most, for that many."""
    heartbeat_interval_s: float = 10.0
    """How often a worker says that it is there."""
    heartbeat_misses: float = 3.0
    """A lease expires when its worker was silent for this many intervals."""
    lease_ttl_s: float = 900.0
    """Longest a lease may run; the real deadline follows measured speed."""
    lease_slack: float = 3.0
    """Deadline = slack x expected duration, within [min_lease_s, lease_ttl_s]."""
    min_lease_s: float = 30.0
    """Shortest time that a lease is given."""
    fetch_s: float = 0.0
    """Every lease has so much time on top, for a download that no earlier lease of its worker tells of: the whole
    model, or columns that it never held. `init` works it out from the model's bytes and the slowest line."""
    round_deadline_s: float = 3600.0
    """From a round's first lease to its close, though some are still awaited."""
    grace_share: float = 0.5
    """After quorum, wait for stragglers this share of the round's median lease, from grant to upload or till then."""
    min_grace_s: float = 1.0
    """Shortest wait for stragglers."""
    overdue_factor: float = 1.5
    """Once most have delivered, nobody waits for a lease that takes over so many times what was expected of it."""
    pace_tolerance: float = 0.25
    """Workers that would end up to this much later than the median one do as many inner steps as everybody."""
    most_steps_share: float = 2.0
    """Fast workers do up to so many times the recipe's steps, 1 to 2 (docs/decisions/0005: why 2)."""
    quarantine_after: int = 3
    """Refused submissions, older ones counting less, before a worker of whose work too large a share is refused
    (`reputation.quarantine_share`) is set aside."""
    quarantine_rounds: int = 5
    """A worker's first quarantine lasts this many rounds ..."""
    quarantine_s: float = 900.0
    """... or this long, whichever ends first: a run whose every worker is set aside must not stand still for ever."""
    max_staleness: int = 1
    """Rounds after its own in which a submission that was committed in time still counts."""
    staleness_discount: float = 0.5
    """Weight of a submission that is one round late: discount ** staleness."""
    max_weight_ratio: float = 2.0
    """A submission's weight is capped at this many times the median weight."""
    max_owner_share: float = 0.5
    """... and one owner's at this share of all, in the outer step and in a quorum, where owners are enough for that."""
    inner: InnerRecipe = InnerRecipe()
    screening: ScreeningConfig = ScreeningConfig()
    audits: AuditConfig = AuditConfig()
    reputation: ReputationConfig = field(default_factory=ReputationConfig)
    delegation: DelegationConfig = field(default_factory=DelegationConfig)
    region: TrustRegionConfig = TrustRegionConfig()
    down: DownConfig = field(default_factory=DownConfig)
    rule: str = "trimmed_mean"
    """How submissions become one, as `median` or `nnm+krum`. docs/aggregation.md lists rules and helps to choose."""
    clip_to_median: bool = True
    """Clip each submission's block to the median norm, after scaling to common steps."""
    outer_learning_rate: float = 1.0
    """How much of the aggregated pseudo-gradient the model moves by."""
    rollback_rounds: int = 0
    """So many rounds can be taken back and made again without a liar: their submissions and versions stay on the
    disk. 0: no rollback."""
    rollback_least_change: float = 0.1
    """A rollback that would change the model by less than this share of a usual round's update is not published."""
    outer_momentum: float = 0.0
    """0 is plain averaging; otherwise SGD with Nesterov momentum, by block."""
    validate_every: int = 1
    """Held-out loss is computed for every so many versions; 0: for the last alone."""
    checkpoint_every: int = 5
    """Every so many versions one is exported to `checkpoints/`; 0: the last alone."""


def check_config(config: EngineConfig) -> None:
    """Refuse a configuration under which no round could ever go well."""
    inner = config.inner
    share = config.most_steps_share if 1 <= config.most_steps_share <= 2 else 1.0  # refused below
    steps = math.ceil(most_recipe_steps(config) * share)
    sequences = steps * inner.batch_sequences
    problems = [
        (1 <= config.columns <= MAX_COLUMNS, f"a run has 1 to {MAX_COLUMNS} expert columns, got {config.columns}"),
        (
            1 <= config.min_columns <= config.columns,
            f"min_columns must be 1 to the model's {config.columns}, got {config.min_columns}",
        ),
        (config.max_rounds >= 1, f"max_rounds must be 1 or more, got {config.max_rounds}"),
        (min(config.region.window, config.region.passes) >= 1, "region.window and region.passes must be 1 or more"),
        (
            config.region.margin >= 0 and config.region.tolerance >= 0 and config.region.early_margin >= 0,
            "region.margin, region.tolerance and region.early_margin must be 0 or more",
        ),
        (config.most_grants >= 1, f"most_grants must be 1 or more, got {config.most_grants}"),
        (config.replicas >= 1 and config.quorum >= 1, "replicas and quorum must be 1 or more"),
        (inner.inner_steps >= 1 and inner.batch_sequences >= 1, "inner_steps and batch_sequences must be 1 or more"),
        (
            inner.final_inner_steps is None or inner.final_inner_steps >= 1,
            f"final_inner_steps must be 1 or more, got {inner.final_inner_steps}: leave it out for a constant number",
        ),
        (steps <= MAX_INNER_STEPS, f"a lease has at most {MAX_INNER_STEPS} inner steps, got {steps}"),
        (
            1 <= config.most_steps_share <= 2,
            f"most_steps_share must be 1 to 2, got {config.most_steps_share}: weights and scales are capped at 2",
        ),
        *((False, f"{name} must be {expected}, got {got!r}") for name, expected, got in breaches(inner)),
        *reputation_problems(config.reputation),
        *down_problems(config.down),
        *delegation_problems(config.delegation),
        (0 <= config.rollback_rounds <= 100, f"rollback_rounds must be 0 to 100, got {config.rollback_rounds}"),
        (config.rollback_least_change >= 0, "rollback_least_change must be 0 or more"),
        *_audit_problems(config.audits),
        (config.overdue_factor >= 1, f"overdue_factor must be 1 or more, got {config.overdue_factor}"),
        (
            0 < config.max_owner_share <= 1,
            f"max_owner_share must be above 0 and at most 1, got {config.max_owner_share}: a share of all votes",
        ),
        (config.outer_learning_rate > 0, f"outer_learning_rate must be above 0, got {config.outer_learning_rate}"),
        (0 <= config.outer_momentum < 1, f"outer_momentum must be 0 to below 1, got {config.outer_momentum}"),
        (inner.lora_epoch_rounds >= 1, f"lora_epoch_rounds must be 1 or more, got {inner.lora_epoch_rounds}"),
        (inner.schedule in SCHEDULES, f"schedule must be one of {', '.join(SCHEDULES)}, got {inner.schedule!r}"),
        (
            0 < inner.final_lr_share <= 1,
            f"final_lr_share must be above 0 and at most 1, got {inner.final_lr_share}: the rate falls, or stays",
        ),
        (
            0 < inner.decay_share <= 1,
            f"decay_share must be above 0 and at most 1, got {inner.decay_share}; `constant` never falls",
        ),
        (
            0 <= inner.warmup_rounds < config.max_rounds,
            f"warmup_rounds must be below max_rounds ({config.max_rounds}), got {inner.warmup_rounds}",
        ),
        (
            config.heartbeat_interval_s * config.heartbeat_misses > 0,
            "heartbeat_interval_s and heartbeat_misses must be above 0",
        ),
        *_screening_problems(config.screening),
        *combination_problems(config.codec, config.rule),
        (
            config.train_sequences >= sequences,
            f"one lease needs {sequences} training sequences, the dataset has {config.train_sequences}: "
            "use more data, shorter sequences, fewer inner steps or a smaller batch_sequences",
        ),
    ]
    for holds, message in problems:
        if not holds:
            raise ConfigError(message)


def _audit_problems(audits: AuditConfig) -> tuple[tuple[bool, str], ...]:
    return (
        (audits.budget >= 0, f"audits.budget must be 0 or more, got {audits.budget}"),
        (
            0 <= audits.least_probability <= 1,
            f"audits.least_probability must be 0 to 1, got {audits.least_probability}",
        ),
        (
            audits.tolerance > 0,
            f"audits.tolerance must be above 0, got {audits.tolerance}: no two machines agree to it",
        ),
        (audits.decisive_steps >= 0, f"audits.decisive_steps must be 0 or more, got {audits.decisive_steps}"),
        (0 <= audits.unpaid_weight <= 1, f"audits.unpaid_weight must be 0 to 1, got {audits.unpaid_weight}"),
        (audits.keep_rounds >= 1, f"audits.keep_rounds must be 1 or more, got {audits.keep_rounds}"),
    )


def _screening_problems(screening: ScreeningConfig) -> list[tuple[bool, str]]:
    """Limits under which honest work could never pass, or nothing would ever be refused."""
    shares = ("min_norm_factor", "min_column_norm_factor", "min_heldout_gain_share", "own_data_share", "gain_shortfall")
    factors = ("max_norm_factor", "max_column_norm_factor", "max_base_factor")
    losses = ("gain_error_margin", "early_margin", "max_doubt", "max_lone_loss", "max_peer_loss")
    found = [
        *((name, 0 <= getattr(screening, name) < 1 or name == "own_data_share", "0 to below 1") for name in shares),
        ("own_data_share", 0 <= screening.own_data_share <= 1, "0 to 1"),
        *((name, getattr(screening, name) > 1, "above 1") for name in factors),
        *((name, getattr(screening, name) >= 0, "0 or more") for name in losses),
        ("doubt_rate", 0 < screening.doubt_rate < 1, "above 0 and below 1"),
        ("norm_history", screening.norm_history >= 1, "1 or more"),
    ]
    return [
        (holds, f"screening.{name} must be {expected}, got {getattr(screening, name)}")
        for name, holds, expected in found
    ]


def most_recipe_steps(config: EngineConfig) -> int:
    """The recipe's steps in the round that has most of them."""
    return max(config.inner.inner_steps, config.inner.final_inner_steps or 0)

"""What a run knows of each worker, each lease and its present round: the frozen rows of the state's tables.

Decides nothing and holds nothing but facts. Rows are replaced, never changed, and only through the methods of
`EngineState` (state.py); their fields are a format (records.py): snapshots have them by these names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from coordinator.engine.earned import NOTHING_EARNED, Credit
from coordinator.engine.events import BlockNorm
from coordinator.engine.history import LeftOut
from coordinator.engine.lease import GrantedLease
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.reasons import Reason, Verdict, told
from coordinator.engine.sequential import RankTest
from protocol.ids import BlockId, Digest, LeaseId, RoundNumber, Version, WorkerId
from protocol.lease import DataRange


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedReport:
    """How long one lease took, from journalled facts alone."""

    steps: int
    train_s: float
    """As the worker says, at most `wall_s`."""
    wall_s: float
    """From grant to commit, by the coordinator's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadReport:
    """How long the bytes of one submission took, by the coordinator's clock alone."""

    payload_bytes: int
    upload_s: float
    """From commit, or from when the line was free, to all bytes; to the end of the lease where they had not come by
    then, which is at most the truth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """Set aside until the earlier of the two ends."""

    until_round: RoundNumber
    until_s: float
    why: Reason
    weight: float = 1.0
    """What its submissions weigh that stood accepted before."""


class BanOf(StrEnum):
    """What a ban is on."""

    KEY = "key"
    OWNER = "owner"
    INVITE = "invite"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ban:
    """Its key gets no lease and no vote any more, until somebody takes it back."""

    at_s: float
    by: str
    """Whoever decided so: a person's name, or `engine`."""
    why: Reason
    of: BanOf = BanOf.KEY
    """What was banned: this key, or all that came with its owner or its invite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """What one auditor found when it computed a lease again."""

    auditor: str
    """The person (`WorkerRecord.person`) who did; empty: the coordinator itself."""
    trunk: float
    """Relative L2 distance of what was sent from what came of it again: the trunk's."""
    columns: float
    """The largest among the lease's columns; 0 where it holds none."""
    passed: bool
    decisive: bool = True
    """False: what was sent is too far from it, and that need not be its worker's doing (arithmetic.py)."""
    arithmetic: str = ""
    """The class in which the auditor computed; empty where nobody said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenNorm:
    """A norm that counted, at common steps and rates."""

    person: int
    """Whose: the place in which the first of the person's machines enrolled."""
    norm_l2: float
    trusted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """One enrolled worker."""

    worker: WorkerId
    name: str
    trusted: bool
    max_columns: int
    tokens_per_s: float
    heard_at_s: float
    """Last journalled event from it."""
    owner: str = ""
    """Whose machine it is; empty: nobody's but its own. Never changes, nor does the next."""
    sibling_of: WorkerId | None = None  # the first worker of the same machine
    present: bool = True
    waiting_since_s: float | None = None
    waits_until_s: float | None = None
    """None while waiting: until it does something else."""
    reports: tuple[SpeedReport, ...] = ()
    uploads: tuple[UploadReport, ...] = ()
    held_round: RoundNumber | None = None
    held_columns: tuple[int, ...] = ()
    """Columns of its latest lease, and that lease's round."""
    cooling_until_s: float = 0.0
    """After losing more than one lease in a round: no busy circle of leases handed back."""
    judged_lately: float = 0.0
    """Submissions that were accepted, or refused for what was in them; older ones count less."""
    refused_lately: float = 0.0
    """Of these, the refused, and halves for what was committed and never sent."""
    lost_in_row: int = 0
    """Leases that expired since a submission of it was last accepted."""
    quarantine: Quarantine | None = None
    quarantines: int = 0
    """How often it was set aside."""
    probation_left: int = 0
    """Valid submissions until it weighs anything again; a refused one starts them anew."""
    leases_granted: int = 0
    leases_expired: int = 0
    leases_returned: int = 0
    accepted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    """Reason key to count."""
    valid_in_row: int = 0
    """Submissions that stood in a row, up to the latest."""
    audits_passed: int = 0
    undecided_in_row: int = 0
    """Leases of it, since one last passed, of which audits could not say anything."""
    arithmetic: str = ""
    """The class in which it computed its latest submission, as it says (protocol/arithmetic.py)."""
    vouched_in: tuple[str, ...] = ()
    """How it computed (`LeaseRecord.computed_as`) when audits passed, the latest last; none that could not be decided
    since. Empty, too, where its audits passed under an older release, which did not ask."""
    audits_failed: int = 0
    """Leases of it that two independent auditors contradicted."""
    accused: LeaseId | None = None
    """A lease of it that one auditor contradicted, and no other has looked at yet."""
    measures: bool = False
    """Whether it offers to measure others' submissions."""
    false_accusations: int = 0
    """Leases of others that it contradicted as an auditor, and two others did not."""
    ban: Ban | None = None
    invite: str = ""
    """Short digest of the invite that it came with; empty where older releases did not say."""
    appeal: LeaseId | None = None
    """A refused lease over which it asked for an audit, until its next submission has been computed again."""
    appealed_at_s: float | None = None
    gain_test: RankTest = field(default_factory=RankTest)
    """Where its gains stand among its peers': half of the steps, other people's work."""
    harm_test: RankTest = field(default_factory=RankTest)
    """Where the gain of all that a round may take of it does: noise."""
    data_test: RankTest = field(default_factory=RankTest)
    """Where what it gains on its own sequences beyond what it gains on any does: copies, other data."""

    credit: Credit = NOTHING_EARNED
    residuals: dict[BlockId, Digest] = field(default_factory=dict)
    """What the newest encoding of each block of its newest lease left with it (residuals.py)."""
    residual_lora_seed: int = 0
    """`lora_seed` of that lease: of a `lora` trunk's factors it is what is left of those."""
    residual_age: int = 0
    """Of its newest commit, as in `LeaseRecord`."""
    residual_reach: float = 0.0
    """Of what was computed when the longest part of its residuals was left, less what has been sent of it since."""
    residual_trunk_reach: float = 0.0
    """The same of a `lora` trunk's alone, which begins anew with other fixed factors."""

    @property
    def person(self) -> str:
        """Equal for the machines of one owner, and the workers of one machine, and for no others: who has one vote."""
        return f"owner {self.owner}" if self.owner else self.sibling_of or self.worker


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """A lease and what became of it."""

    lease: GrantedLease
    status: LeaseStatus = LeaseStatus.GRANTED
    regrants: int = 0
    gap_s: float = 0.0
    """Of the time since its grant, so much in which the coordinator was not there."""
    digest: Digest | None = None
    payload_bytes: int = 0
    codec: str = ""
    residuals_in: tuple[Digest, ...] = ()
    """What the encoding of each of the lease's blocks began with; "": nothing. () where the codec keeps nothing."""
    residuals_out: tuple[Digest, ...] = ()
    """What it left."""
    residuals_open: tuple[Digest, ...] = ()
    """Those whose bytes are here, for an audit."""
    residuals_back: tuple[Digest, ...] = ()
    """What is left of each where the submission comes to nothing."""
    residual_age: int = 0
    """How many commits of its worker before this one, in a row, it goes on from."""
    carried_reach: float = 0.0
    """Reach (pacing.py) of what the residuals that went in bring along; 0 where none did."""
    carried_trunk_reach: float = 0.0
    """The same of a `lora` trunk's."""
    committed_at_s: float | None = None
    micro_batch: int = 0
    """Sequences that its worker put through the model at a time, as it says; 0 where it does not."""
    arithmetic: str = ""
    """The class in which its worker computed it, as it says; empty where it does not."""
    upload_broken: bool = False
    """Since the commit something came between: how long the bytes take tells nothing about the uplink."""
    uploaded_at_s: float | None = None
    overdue_at_s: float | None = None
    """When its round stops waiting for it; None until more than half of the round's owners have delivered."""
    overdue: bool = False
    """That moment has passed: it may still come, but nobody waits for it."""
    train_loss_first: float = 0.0
    train_loss_last: float = 0.0
    norms: tuple[BlockNorm, ...] = ()
    """At common steps and rates."""
    heldout_gain: float = 0.0
    heldout_gain_se: float = 0.0
    full_gain: float = 0.0
    full_gain_se: float = 0.0
    own_gain: float | None = None
    part_spread: float = 0.0
    """The last four as in `SubmissionMeasured`."""
    measured_by: WorkerId | None = None
    """The trusted worker whose word for its gains is taken; None: the coordinator measured them."""
    compared: bool = False
    """Its worker's sequential tests have read it."""
    verdict: Verdict | None = None
    ended: Reason | None = None
    """Why it expired or was returned, or was accepted and counts nowhere."""
    counted_in: RoundNumber | None = None
    credited: int = 0
    """Sequences that stand to its worker's credit by it."""
    uncredited: Reason | None = None
    """Why they do not any more."""
    audit_due: bool = False
    """It was drawn to be computed again, and has not been yet."""
    audits: tuple[AuditResult, ...] = ()
    audit_certain: bool = False
    """It was not drawn by chance: what it is worth hangs on the result, which its round waits for."""
    audit_unpaid: bool = False
    """It was drawn, and the budget did not reach for it."""
    audit_unable: bool = False
    """The coordinator itself tried in vain to compute it again."""
    audit_since_s: float = 0.0
    """When its present audit was called for: the first, or another opinion."""

    @property
    def computed_as(self) -> str:
        """The class and the cut, in which its worker computed it; empty where it does not say both."""
        known = self.arithmetic and self.micro_batch
        return f"{self.arithmetic}, {self.micro_batch} at a time" if known else ""

    @property
    def residuals_missing(self) -> tuple[Digest, ...]:
        """What is not here yet of what an audit needs, each once."""
        needed = dict.fromkeys((*self.residuals_in, *self.residuals_out))
        return tuple(digest for digest in needed if digest and digest not in self.residuals_open)

    @property
    def accusers(self) -> tuple[str, ...]:
        """The people who computed it again and came to something else."""
        return tuple(result.auditor for result in self.audits if result.decisive and not result.passed)

    @property
    def is_undecided(self) -> bool:
        """Whether somebody computed it again and could not say anything."""
        return any(not result.decisive for result in self.audits)

    @property
    def vouchers(self) -> tuple[str, ...]:
        """The people who computed it again and came to the same."""
        return tuple(result.auditor for result in self.audits if result.passed)

    @property
    def end_reason(self) -> str:
        """Why it ended, in words; empty where it did not, or by a verdict."""
        return told(self.ended) if self.ended else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundState:
    """The round that is open, or being aggregated."""

    round: RoundNumber
    base_version: Version
    opened_at_s: float
    gathered_at_s: float | None = None
    """When enough workers were first waiting."""
    first_lease_at_s: float | None = None
    settled_at_s: float | None = None
    """When every column had its quorum, or nobody left who could bring it."""
    grace_until_s: float | None = None
    spare_wait_until_s: float | None = None
    """A column is short and somebody who could serve it has yet to ask: so long is waited."""
    next_lease: int = 1
    granting: bool = False
    """One decision grants `EngineConfig.most_grants` leases at most; more are to follow, with the next `Ticked`."""
    sticky: dict[WorkerId, tuple[int, ...]] = field(default_factory=dict)
    """Who held which columns in the round before."""
    redrawn: dict[int, tuple[WorkerId, ...]] = field(default_factory=dict)
    """Who is to leave each column's replica set this round."""
    accepted: int = 0
    rejected: int = 0
    expired: int = 0
    returned: int = 0
    closed: Reason | None = None
    left_out: tuple[LeftOut, ...] = ()
    audit_carried: float = 0.0
    """Of the budget for audits of the rounds before: what they left, or, below 0, what they overdrew."""
    audit_spent: float = 0.0
    """Whole leases' work that this round's audits take."""
    audits_expected: float = 0.0
    """Whole leases' work that auditing would take, by the probabilities at which the round's leases may be drawn."""
    audits_expected_by: tuple[float, ...] = ()
    """The same by whose turn it is (audit_budget.py)."""
    audits_drawn: int = 0
    audits_unpaid: int = 0
    """Of those drawn."""
    withheld: tuple[Reason, ...] = ()
    """Versions that were made of it and are not published, in their order."""
    rows: DataRange | None = None
    """The latest that trusted workers were given to measure on."""
    rows_since_s: float = 0.0
    """When: whoever commits later is measured on others."""
    thin: int = 0
    """Blocks that fewer than three independent people returned."""

    @property
    def close_reason(self) -> str:
        """Why it closed, in words; empty while it is open."""
        return told(self.closed) if self.closed else ""

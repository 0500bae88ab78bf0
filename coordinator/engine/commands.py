"""What the engine asks the outside to do. Imperatives, frozen; slow ones have an id and end in an event.

A command with an id stays in the state's `pending` until its result event arrives and is safe to repeat: its result is
content-addressed or idempotent.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from coordinator.engine.answers import GainAnswer
from coordinator.engine.down_config import WHOLE, DownConfig
from coordinator.engine.enough import EarlyStop, RegionStop
from coordinator.engine.lease import GrantedLease
from coordinator.engine.reasons import Reason, Verdict, told
from protocol.ids import BlockId, Digest, LeaseId, RoundNumber, Version, WorkerId
from protocol.lease import ALL_OF_TRUNK, DataRange, TrunkPart


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Base of all commands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantLease(Command):
    """Hand this lease to its worker (answer its waiting call)."""

    lease: GrantedLease


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelLease(Command):
    """Tell the worker, at its next heartbeat, that the lease is worth nothing any more."""

    worker: WorkerId
    lease_id: LeaseId
    why: Reason

    @property
    def reason(self) -> str:
        """Why, in words."""
        return told(self.why)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnounceVerdict(Command):
    """Tell the worker what became of its submission."""

    worker: WorkerId
    lease_id: LeaseId
    verdict: Verdict

    @property
    def accepted(self) -> bool:
        """Whether it counts, or will."""
        return self.verdict.accepted

    @property
    def reason(self) -> str:
        """Why, in words."""
        return self.verdict.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenResiduals(Command):
    """An audit needs what a worker's encodings kept: ask for it with its next answer, now where it waits for one."""

    worker: WorkerId
    lease_id: LeaseId


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutOut(Command):
    """End the worker's session: it is banned, and is told so when it comes back."""

    worker: WorkerId
    why: Reason

    @property
    def reason(self) -> str:
        """Why, in words."""
        return told(self.why)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRun(Command):
    """Answer every waiting call with `RunOver`."""

    why: Reason

    @property
    def reason(self) -> str:
        """Why, in words."""
        return told(self.why)


@dataclass(frozen=True, slots=True, kw_only=True)
class DropPayload(Command):
    """A submission's bytes are needed no more."""

    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowCommand(Command):
    """Base of commands that end in an event naming `command_id`. The id is deterministic, e.g. `measure:r3.7`."""

    command_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSubmission(SlowCommand):
    """Decode, check and measure one submission. Ends in `SubmissionMeasured`."""

    lease: GrantedLease
    digest: Digest
    payload_bytes: int
    codec: str
    heldout_seed: int
    """Secret draw: which held-out sequences the gain is measured on."""
    measure_gain: bool
    """False while screening is off: decode and norms only."""
    taken: float = 1.0
    """How many times the submission an outer step of it alone would move the model by."""
    part: float = 0.25
    """How many times the submission is a quarter of what an outer step takes of it, at the round's steps."""
    own_data: bool = False
    """Secret draw: whether the gain on some of the lease's own sequences is measured, too."""
    early: EarlyStop | None = None
    """When measuring may stop; None: with the last sequence of the draw."""
    rows: DataRange | None = None
    """Training sequences that no lease names: what is measured on in place of the secret draw, whoever does it."""
    delegate: bool = False
    """Trusted workers may measure it."""
    check: bool = False
    """Secret draw: where they do, two of different owners are to, or one and the coordinator."""
    answers: tuple[GainAnswer, ...] = ()
    """What they have said, to be held against what is measured here, on the whole of `rows`."""
    tolerance: float = 0.0
    """Nats a token by which they may differ from it in each sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One accepted submission, as it enters aggregation."""

    lease_id: LeaseId
    digest: Digest
    codec: str
    columns: tuple[int, ...]
    base_version: Version
    step_scale: float
    """Multiply the pseudo-gradient by this to bring it to the round's common number of inner steps."""
    weight: float
    """From sequences that the coordinator assigned, capped, times the staleness discount."""
    sequences: int
    """That the coordinator assigned: what the model was trained on with it."""
    worker: WorkerId | None = None
    """Whose it is; None in commands of an older release."""
    include_trunk: bool = True
    """False for a second submission of one worker, or of one owner, in a round: nobody votes twice on the trunk. False
    where that is frozen."""
    unheard: tuple[BlockId, ...] = ()
    """Blocks on which it has no say: too few independent people hold them, and nobody vouches for it."""
    trunk: TrunkPart = ALL_OF_TRUNK
    """What it has of the trunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockClip:
    """Norm (after step scaling) to which contributions of one block are clipped; infinite where none is."""

    block: BlockId
    max_norm_l2: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedVersion:
    """A version that was the run's."""

    version: Version
    manifest: Digest


class Remedy(StrEnum):
    """What a round is made of after a first version of it was withheld."""

    NONE = ""
    WITHOUT_HARMFUL = "without"
    """Of all but those that were found to harm."""
    VOUCHED = "vouched"
    """Of those alone that are trusted, or were audited and found true."""
    SHORT = "short"
    """Of the same, and the outer step is a fraction of the run's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateRound(SlowCommand):
    """Aggregate, take the outer step, write new blocks, momenta and a signed manifest. Ends in `RoundAggregated`.

    What is written is not the run's yet: the engine publishes it, or withholds it.
    """

    round: RoundNumber
    parent_version: Version
    parent_manifest: Digest
    version: Version
    contributions: tuple[Contribution, ...]
    clips: tuple[BlockClip, ...]
    rule: str
    outer_learning_rate: float
    outer_momentum: float
    seed: int
    """Secret draw for rules that deal contributions at random (bucketing)."""
    oldest_needed: Version
    """Versions below it are needed by nobody any more; the parent is never below it."""
    cautious: bool = False
    """A block for which the rule fails is made by the coordinate-wise median instead, or stays as it was."""
    compared_with: tuple[PublishedVersion, ...] = ()
    """Whose held-out losses the new version's are compared with: its parent first. None: it is not measured."""
    region_seed: int = 0
    """Secret draw: which held-out sequences they are compared on."""
    early: RegionStop | None = None
    """When comparing may stop; None: with the last sequence of the draw."""
    remedy: Remedy = Remedy.NONE
    step_share: float = 1.0
    """Of the outer step that the run's rate gives: below 1 where `remedy` is `SHORT`."""
    down: DownConfig = WHOLE
    """How what is published is encoded, as `refreshing.down_in` has it for this round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TryContributions(SlowCommand):
    """Make of each contribution of `attempt` alone what all together cannot be made, and keep nothing of it.

    In their order. Ends in `ContributionsTried`.
    """

    attempt: AggregateRound


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildVersion(SlowCommand):
    """Take outer steps again, without somebody's submissions, from a version of before on. Ends in `VersionRebuilt`.

    Each step starts from what the one before came to, and from the momenta of `from_manifest`; weights, scales, clips
    and rules are as they were.
    """

    round: RoundNumber
    version: Version
    parent_version: Version
    """The present one: what it takes the place of, and is compared with."""
    parent_manifest: Digest
    from_version: Version
    from_manifest: Digest
    steps: tuple[AggregateRound, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayLease(SlowCommand):
    """Compute a lease again and say how far what was sent is from it. Ends in `LeaseReplayed`."""

    lease: GrantedLease
    digest: Digest
    """What was sent."""
    codec: str
    micro_batch: int
    """Sequences that its worker put through the model at a time, as it says; 0 where it does not."""
    arithmetic: str = ""
    """The class to compute it in, where that can be had: its worker's."""
    residuals_in: tuple[Digest, ...] = ()
    residuals_out: tuple[Digest, ...] = ()
    """What the encoding of each block began with ("": nothing), and left; the bytes are here. () for most codecs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareSubmissions(SlowCommand):
    """Say how far what was sent for a lease is from what another worker sent for the same. Ends in `LeaseReplayed`."""

    lease: GrantedLease
    digest: Digest
    codec: str
    again: GrantedLease
    """The same lease in an auditor's hands (`GrantedLease.audits`)."""
    again_digest: Digest
    again_codec: str
    residuals_in: tuple[Digest, ...] = ()
    residuals_out: tuple[Digest, ...] = ()
    """As in `ReplayLease`, of what was sent first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FindHarmful(SlowCommand):
    """Make models of some of `attempt`'s contributions, measure them, keep nothing. Ends in `HarmfulFound`.

    Which contributions, or which groups of them, make a model that is worse than the attempt's parent.
    """

    attempt: AggregateRound
    suspects: tuple[LeaseId, ...]
    """All contributions with a say, the most doubtful first."""
    margin: float
    tolerance: float
    """A lone contribution harms that raises held-out loss by over `margin` standard errors and over this share of it
    (`TrustRegionConfig`)."""
    passes: int
    """Models that are measured at most, besides the parent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateVersion(SlowCommand):
    """Held-out loss of a published version. Ends in `VersionValidated`."""

    version: Version
    manifest: Digest
    delegate: bool = False
    """Trusted workers may measure it."""
    check: bool = False
    """As in `MeasureSubmission`, and so are the two below."""
    answers: tuple[GainAnswer, ...] = ()
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteCheckpoint(SlowCommand):
    """Export a published version as a Hugging Face folder. Ends in `CheckpointWritten`."""

    version: Version
    manifest: Digest


Item = MeasureSubmission | ValidateVersion
"""What trusted workers may measure in the coordinator's place."""

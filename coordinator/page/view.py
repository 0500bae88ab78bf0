"""What the page shows: one immutable picture of a run, made by the edge and given to the page's thread.

Decides the form of `/api`, of every panel and of every metric: all three read this and nothing else. Always: it holds
what everybody may know (docs/decisions/0061-what-a-public-page-leaves-out.md): display names, never a key, an address
or an owner; words that a worker may read of itself, never a figure that screening measured; nothing that tells an audit
from a lease. Moments are calendar seconds since 1970, durations seconds, sizes bytes, losses nats a token.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class _Shown(BaseModel):
    # a loss may be infinite, for which JSON has no number
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")


class Tone(StrEnum):
    """How a run is, in one word."""

    HEALTHY = "healthy"
    WAITING = "waiting"
    TROUBLE = "trouble"
    OVER = "over"


class Headline(_Shown):
    """The run in one sentence, and what to do about it where there is something."""

    tone: Tone
    text: str
    advice: str = ""


class RunCard(_Shown):
    """What the run is: nothing of it changes while it is served, but the version."""

    run_id: str
    name: str
    model: str
    parameters: int
    columns: int
    top_k: int
    residency: str
    codec: str
    rule: str
    data: str
    sequence_length: int
    replicas: int
    quorum: int
    open_run: bool
    max_rounds: int
    started_at_s: float
    version: int
    exported_version: int | None
    release: str


class OpenReason(_Shown):
    """One reason why the round is open."""

    subject: str
    text: str


class LeaseBar(_Shown):
    """One lease of the open round. Those that audit another look like any other."""

    worker: str
    columns: int
    state: str
    steps: int
    done: int
    granted_at_s: float
    committed_at_s: float | None
    arrived_at_s: float | None
    deadline_at_s: float


class OpenRound(_Shown):
    """The round that is open, or being aggregated."""

    number: int
    phase: str
    base_version: int
    opened_at_s: float
    closes_at_s: float | None
    """At the latest; None while nobody holds a lease of it."""
    grace_until_s: float | None
    accepted: int
    refused: int
    lost: int
    reasons: tuple[OpenReason, ...]
    more_reasons: int
    leases: tuple[LeaseBar, ...]
    more_leases: int


class ClosedRow(_Shown):
    """A closed round."""

    number: int
    version: int | None
    closed_at_s: float
    lasted_s: float
    accepted: int
    refused: int
    lost: int
    tokens: int
    """That were trained on in what counted."""
    loss: float | None
    why: str


class LossPoint(_Shown):
    """A validated version."""

    version: int
    round: int
    tokens: int
    """Counted up to and with it."""
    hours: float
    """Since the run's first round opened."""
    loss: float
    standard_error: float


class ColumnHealth(StrEnum):
    """How an expert column stands in the open round."""

    WHOLE = "whole"
    """Its quorum is there."""
    COMING = "coming"
    """What is on its way is enough."""
    SHORT = "short"
    """What is on its way is not."""
    UNHELD = "unheld"
    """Nobody has a lease of it."""


class ColumnCell(_Shown):
    """One expert column in the open round."""

    column: int
    health: ColumnHealth
    leased: int
    accepted: int
    coming: int
    gone: int
    missing: tuple[str, ...]
    """Whose leases of it were lost or refused, by display name; the first few."""


class WorkerRow(_Shown):
    """One worker."""

    place: int
    """In the order of enrolment, from 1: two workers may have one name."""
    name: str
    state: str
    why: str
    standing: str
    connected: bool
    columns: int
    accepted: int
    refused: int
    lost: int
    tokens_per_s: float
    silent_s: float


class BytesMoved(_Shown):
    """Bytes since the run began, and lately."""

    received_bytes: int
    sent_bytes: int
    received_bytes_per_s: float
    sent_bytes_per_s: float
    calls: int
    refused_calls: int


class Energy(_Shown):
    """What training has taken, as an estimate: hours are reported, watts are assumed."""

    machine_hours: float
    """Of training, in submissions that were judged."""
    watts_assumed: int
    kwh: float


class Judged(_Shown):
    """What came of submissions, over the whole run."""

    accepted: int
    refused: dict[str, int]
    """Kind of refusal to count."""
    leases_granted: int
    leases_expired: int
    leases_returned: int
    audits_passed: int
    audits_failed: int
    audited: bool
    """Whether leases are computed again in this run; which, by whom and how many is nobody's to know."""


class Contributor(_Shown):
    """One contributor's validated work."""

    name: str
    team: str = ""
    tokens: int
    accepted: int


class Health(_Shown):
    """What the machine says of itself, for `/metrics`, `/readyz` and alerts."""

    stalled: str
    """Why nothing can be recorded; empty while all is well."""
    paused: str
    """Why no work is given out; empty while it is."""
    held: bool
    """Whether that is since an operator said so."""
    pending_commands: int
    failing_commands: int
    failed_commands: int
    """How often one failed since the run began, given up or not."""
    withheld_rounds: int
    """Rounds in a row of which no version could be published as it was."""
    disk_free_bytes: int
    disk_size_bytes: int
    certificate_expires_at_s: float
    snapshot_cost_s: float
    """What making this picture took of the coordinator's loop."""


class RunView(_Shown):
    """One moment of a run."""

    at_s: float
    headline: Headline
    card: RunCard
    open_round: OpenRound
    closed: tuple[ClosedRow, ...]
    """Oldest first; the latest ones of a long run."""
    rounds_closed: int
    left_s: float | None
    """Until the planned rounds are over, at the pace of the latest ones."""
    losses: tuple[LossPoint, ...]
    columns: tuple[ColumnCell, ...]
    enrolled: int
    connected: int
    worker_states: dict[str, int]
    workers: tuple[WorkerRow, ...]
    """Those first that somebody may have to look at."""
    more_workers: int
    moved: BytesMoved
    energy: Energy
    judged: Judged
    tokens_counted: int
    credit: tuple[Contributor, ...]
    """Most tokens first."""
    health: Health

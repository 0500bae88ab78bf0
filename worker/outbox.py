"""What is trained and not yet settled, on disk until the coordinator has it: what is sent, and what comes after it.

Decides what counts as a whole submission: a record naming digest and size, and a payload that matches both. Payload and
residuals are durable before the record that names them, so a crash leaves either nothing or everything. Residuals, by
their digests, outlive the submission that named them: the next lease begins with one of them, and an audit may ask for
those of the two saved last, since the next lease is asked for before it is known whether the last one is audited. One
thread saves, another reads and drops at the same time: dropping touches nothing but what it drops. Touches its own
folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.arithmetic import MAX_ARITHMETIC_CHARACTERS, UNKNOWN_ARITHMETIC
from protocol.ids import Digest, LeaseId, digest_of
from protocol.misfits import misfits
from worker.files import DISK, Files, file_digest, reading

RECORD = "submission.json"
"""The first record's name; later ones have a number, and so had none in releases that kept one submission only."""
_RECORD = re.compile(r"submission(?:-(\d+))?\.json")
_PAYLOAD = ".safetensors"
_RESIDUAL = ".residual"
_NAMED = "residuals.json"
"""Digests that the latest submissions named, the newest first."""
RESIDUALS_OF = 2
"""Submissions whose residuals are kept: an audit of the last one is asked for with the lease after the next."""

log = structlog.get_logger()


class Submission(BaseModel):
    """What is committed to; the payload lies beside it under its digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lease_id: LeaseId = Field(min_length=1, max_length=64)
    digest: Digest = Field(pattern=r"^[0-9a-f]{64}$")
    payload_bytes: int = Field(ge=0)
    codec: str
    residuals_in: tuple[Digest, ...] = ()
    residuals_out: tuple[Digest, ...] = ()
    residuals_back: tuple[Digest, ...] = ()
    """As in `CommitSubmissionRequest`."""
    inner_steps_done: int = Field(ge=0)
    tokens: int = Field(ge=0)
    train_loss_first: float
    train_loss_last: float
    train_s: float
    micro_batch: int = Field(ge=1)
    """Sequences that went through the model at a time, at the end."""
    arithmetic: str = Field(default=UNKNOWN_ARITHMETIC, max_length=MAX_ARITHMETIC_CHARACTERS)
    """The class in which it was computed; an older release did not say."""


class Draft:
    """A payload or a residual that is being written; it lies in the outbox once it is kept."""

    def __init__(self, files: Files, folder: Path, suffix: str) -> None:
        self._writer = files.writer(folder / f"draft{suffix}")
        self._folder, self._suffix = folder, suffix
        self._hasher = hashlib.sha256()
        self.written_bytes = 0

    def add(self, piece: bytes | memoryview) -> None:
        """At its end."""
        self._writer.add(piece)
        self._hasher.update(piece)
        self.written_bytes += len(piece)

    def keep(self) -> Digest:
        """Durable, under its digest."""
        digest = Digest(self._hasher.hexdigest())
        self._writer.keep(self._folder / f"{digest}{self._suffix}")
        return digest

    def drop(self) -> None:
        """Nothing of it is left; fine where it was kept."""
        self._writer.drop()


class Outbox:
    """Holds a submission for each lease, the oldest first. The session sees to it that there are two at most."""

    def __init__(self, folder: Path, files: Files = DISK) -> None:
        files.make_folder(folder)
        self._folder, self._files = folder, files
        self._verified: set[Digest] = set()
        """Digests of payloads that this process wrote or has checked: hashing gigabytes once is enough."""

    def payload_path(self, submission: Submission) -> Path:
        """Where the bytes of `submission` lie."""
        return self._folder / f"{submission.digest}{_PAYLOAD}"

    def read(self, submission: Submission, offset: int, length: int) -> bytes:
        """A part of the bytes of `submission`."""
        return self._files.read(self.payload_path(submission), offset, length)

    def residual(self, digest: Digest) -> bytes | None:
        """A residual that is kept here; None where it is not, or not what it was."""
        path = self._residual_path(digest)
        if self._files.size(path) is None:
            return None
        content = self._files.read(path)
        return content if digest_of(content) == digest else None

    def kept(self, digest: Digest) -> BinaryIO | None:
        """As `residual`, to be read in parts."""
        path = self._residual_path(digest)
        if self._files.size(path) is None or file_digest(path, self._files) != digest:
            return None
        return reading(path, self._files)

    def payload(self) -> Draft:
        """A new one, to be written; what nothing records by the next one's record goes."""
        return Draft(self._files, self._folder, _PAYLOAD)

    def new_residual(self) -> Draft:
        """A new one, likewise."""
        return Draft(self._files, self._folder, _RESIDUAL)

    def save(self, submission: Submission, payload: bytes, residuals: Mapping[Digest, bytes] | None = None) -> None:
        """As `record`, of what is in memory: `payload` has the digest that `submission` names, for whoever says so has
        just hashed it.
        """
        for residual, content in (residuals or {}).items():
            self._files.write(self._residual_path(residual), content)
        self._files.write(self.payload_path(submission), payload)
        self.record(submission)

    def record(self, submission: Submission) -> None:
        """Make `submission` durable, whose payload and new residuals were kept by drafts of this process; replaces what
        was here of the same lease.
        """
        assert self._files.size(self.payload_path(submission)) == submission.payload_bytes
        records = self._records()
        name = f"submission-{max(records) + 1}.json" if records else RECORD
        self._files.write(self._folder / name, submission.model_dump_json().encode())
        self._verified.add(submission.digest)
        for path in records.values():
            before = self._read(path)
            if before is not None and before.lease_id == submission.lease_id:
                self._remove(path, before)
        self._sweep()
        self._keep_residuals(submission)

    def learn(self, submission: Submission) -> None:
        """Another process of this worker has recorded it, and has just hashed its payload."""
        self._verified.add(submission.digest)

    def all(self) -> list[Submission]:
        """The submissions on disk, the oldest first; what is not whole is removed."""
        found = [submission for path in self._records().values() if (submission := self._whole(path)) is not None]
        self._sweep()
        return found

    def load(self, lease_id: LeaseId | None = None) -> Submission | None:
        """The submission for `lease_id`, or the oldest; None where there is none, or what is there is not whole."""
        if lease_id is None:
            return next(iter(self.all()), None)
        for path in self._records().values():
            submission = self._read(path)
            if submission is not None and submission.lease_id == lease_id:
                return self._whole(path)
        return None

    def drop(self, lease_id: LeaseId) -> None:
        """Forget the submission for `lease_id`, if there is one."""
        for path in self._records().values():
            submission = self._read(path)
            if submission is not None and submission.lease_id == lease_id:
                self._remove(path, submission)

    def _records(self) -> dict[int, Path]:
        """By number, ascending."""
        names = ((_RECORD.fullmatch(path.name), path) for path, *_ in self._files.entries(self._folder))
        found = {int(match[1] or 0): path for match, path in names if match}
        return dict(sorted(found.items()))

    def _read(self, path: Path) -> Submission | None:
        try:
            return Submission.model_validate_json(self._files.read(path))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            log.warning("outbox_dropped", reason="unreadable record", detail=misfits(error)[0][1])
            self._remove(path, None)
            return None

    def _whole(self, path: Path) -> Submission | None:
        submission = self._read(path)
        if submission is None or self._is_whole(submission):
            return submission
        log.warning("outbox_dropped", reason="payload is not what the record promises", lease=submission.lease_id)
        self._remove(path, submission)
        return None

    def _is_whole(self, submission: Submission) -> bool:
        path = self.payload_path(submission)
        if self._files.size(path) != submission.payload_bytes:
            return False
        if submission.digest not in self._verified and file_digest(path, self._files) == submission.digest:
            self._verified.add(submission.digest)
        return submission.digest in self._verified

    def _residual_path(self, digest: Digest) -> Path:
        return self._folder / f"{digest}{_RESIDUAL}"

    def _keep_residuals(self, submission: Submission) -> None:
        """Those that the latest submissions named stay, the others go."""
        own = (*submission.residuals_in, *submission.residuals_out, *submission.residuals_back)
        path = self._folder / _NAMED
        if not own and self._files.size(path) is None:
            return
        named_now: list[str] = sorted({digest for digest in own if digest})
        lately = [named_now, *self._named_before(path)][:RESIDUALS_OF]
        self._files.write(path, json.dumps(lately).encode())
        kept = {self._residual_path(Digest(digest)) for named in lately for digest in named}
        for one, *_ in self._files.entries(self._folder):
            if _RESIDUAL in one.name and one not in kept:  # whole ones, and what a crash left of one
                self._files.remove(one)

    def _named_before(self, path: Path) -> list[list[str]]:
        if self._files.size(path) is None:
            return []
        try:
            return [[str(digest) for digest in named] for named in json.loads(self._files.read(path))]
        except (ValueError, TypeError):
            log.warning("residuals_forgotten", reason="unreadable record")
            return []

    def _remove(self, record: Path, submission: Submission | None) -> None:
        """The record goes first, so that no record ever names a missing payload."""
        self._files.remove(record)
        self._files.sync(self._folder)
        others = [self._read(path) for path in self._records().values()]
        if submission is not None and submission.digest not in {other.digest for other in others if other is not None}:
            self._verified.discard(submission.digest)
            self._files.remove(self.payload_path(submission))

    def _sweep(self) -> None:
        """Payloads that no record names go, and what a crash left of one. Never while another thread saves."""
        kept = {self.payload_path(one) for path in self._records().values() if (one := self._read(path)) is not None}
        for path, *_ in self._files.entries(self._folder):
            if path not in kept and _PAYLOAD in path.name:
                self._files.remove(path)

"""The one submission that is trained and not yet settled, on disk until the coordinator has it; and residuals.

Decides what counts as a whole submission: a record naming digest and size, and a payload that matches both. Payload and
residuals are durable before the record that names them, so a crash leaves either nothing or everything. Residuals, by
their digests, are those of the submission that was saved last, and outlive it: what its encoding began with, what it
left, and what is left where it comes to nothing; which of them counts the next lease says. Touches its own folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.arithmetic import MAX_ARITHMETIC_CHARACTERS, UNKNOWN_ARITHMETIC
from protocol.ids import Digest, LeaseId, digest_of
from worker.files import DISK, Files, file_digest

RECORD = "submission.json"
_PAYLOAD = ".safetensors"
_RESIDUAL = ".residual"

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


class Outbox:
    """Holds at most one submission."""

    def __init__(self, folder: Path, files: Files = DISK) -> None:
        files.make_folder(folder)
        self._folder, self._files = folder, files
        self._verified: Digest | None = None
        """Digest of the payload that this process wrote or has checked: hashing gigabytes once is enough."""

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

    def save(self, submission: Submission, payload: bytes, residuals: Mapping[Digest, bytes] | None = None) -> None:
        """Make `submission` durable, and its residuals that are new; replaces the one before."""
        assert digest_of(payload) == submission.digest
        assert len(payload) == submission.payload_bytes
        for residual, content in (residuals or {}).items():
            self._files.write(self._residual_path(residual), content)
        self._files.write(self.payload_path(submission), payload)
        self._files.write(self._folder / RECORD, submission.model_dump_json().encode())
        self._verified = submission.digest
        self._remove_payloads(keep=self.payload_path(submission))
        named = {*submission.residuals_in, *submission.residuals_out, *submission.residuals_back}
        self._remove(_RESIDUAL, {self._residual_path(digest) for digest in named})

    def load(self) -> Submission | None:
        """The submission on disk; None where there is none, or what is there is not whole (it is then removed)."""
        record = self._folder / RECORD
        if self._files.size(record) is None:
            self._remove_payloads(keep=None)
            return None
        try:
            submission = Submission.model_validate_json(self._files.read(record))
        except ValidationError as error:
            log.warning("outbox_dropped", reason="unreadable record", detail=str(error.errors()[0]["msg"]))
            self.clear()
            return None
        if not self._is_whole(submission):
            log.warning("outbox_dropped", reason="payload is not what the record promises", lease=submission.lease_id)
            self.clear()
            return None
        return submission

    def drop(self, lease_id: LeaseId) -> None:
        """Forget the submission for `lease_id`, if that is what is here."""
        submission = self.load()
        if submission is not None and submission.lease_id == lease_id:
            self.clear()

    def clear(self) -> None:
        """Empty the folder; the record goes first, so that no record ever names a missing payload."""
        self._files.remove(self._folder / RECORD)
        self._files.sync(self._folder)
        self._remove_payloads(keep=None)

    def _is_whole(self, submission: Submission) -> bool:
        path = self.payload_path(submission)
        if self._files.size(path) != submission.payload_bytes:
            return False
        if self._verified != submission.digest and file_digest(path, self._files) == submission.digest:
            self._verified = submission.digest
        return self._verified == submission.digest

    def _residual_path(self, digest: Digest) -> Path:
        return self._folder / f"{digest}{_RESIDUAL}"

    def _remove_payloads(self, keep: Path | None) -> None:
        self._remove(_PAYLOAD, set() if keep is None else {keep})

    def _remove(self, kind: str, kept: set[Path]) -> None:
        for path, *_ in self._files.entries(self._folder):
            if path not in kept and kind in path.name:  # whole ones, and what a crash left of one
                self._files.remove(path)

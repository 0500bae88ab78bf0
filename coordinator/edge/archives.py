"""Workers that keep whole versions, over the wire: what each is to keep, and who says that it has which.

Decides to whom a version is given whole, momentum and what the coordinator goes on from among it: to as many workers as
the setting `archives` says, each the version that was there when it asked, which stays on disk until it has come or the
worker has been silent for `TAKING_S`. Always: nothing is given that an archive may not hold (run/archiving.py); what is
held is what workers say, and counts while they are here; in memory alone, since after a restart everybody tells it
again. Reads the run's versions.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

import structlog

from coordinator.edge.served import RunContext
from coordinator.edge.sessions import CallerSession
from coordinator.run.archiving import archive_index
from protocol.archives import ArchiveIndex
from protocol.errors import MalformedMessage, Refused
from protocol.ids import Digest, Version, WorkerId
from protocol.v1 import barnraise_pb2 as pb

TAKING_S = 3600.0
"""A worker that asked for a version, and for none of its files for so long, does not keep it on this disk."""
MAX_RECORD_REPLY_BYTES = 512 * 1024
"""A recipe and a card take some KB."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """One version, as archives have it."""

    version: Version
    index: ArchiveIndex
    files: frozenset[Digest]
    companions: dict[Digest, bytes]


@dataclass(slots=True)
class _Archiving:
    """One worker that does."""

    given: _Given
    heard_s: float
    held: tuple[Version, Digest] | None = None
    """Version, and its manifest."""


class Archives:
    """Answers Archive, and says what may be downloaded beside what every worker may have."""

    def __init__(self, run: RunContext) -> None:
        self._run, self._facts = run, run.archive_facts
        self._workers: dict[WorkerId, _Archiving] = {}
        self._newest: _Given | None = None
        self._making = asyncio.Lock()
        run.versions.held = self._taken

    @property
    def are_given(self) -> bool:
        """Whether anybody may ask."""
        return self._facts is not None and self._run.settings.archives > 0

    async def answer(self, session: CallerSession, request: pb.ArchiveRequest) -> pb.ArchiveReply:
        """What the worker has is noted; what it is to keep next, with the run's record of it."""
        if request.held_manifest and len(request.held_manifest) != 32:
            raise MalformedMessage(f"Archive: a manifest's digest has 32 bytes, got {len(request.held_manifest)}")
        notice = self._refusal(session.worker)
        if notice:
            return pb.ArchiveReply(notice=notice)
        given = await self._present()
        known = self._workers.setdefault(session.worker, _Archiving(given=given, heard_s=-math.inf))
        known.given, known.heard_s = given, self._run.run_time()
        held = (Version(request.held_version), Digest(request.held_manifest.hex())) if request.held_manifest else None
        if held is not None and held != known.held:
            _log.info("archive_held", worker=session.worker, version=held[0])
        known.held = held
        return pb.ArchiveReply(
            version=given.version, record_json=given.index.record_json, record_signature=given.index.record_signature
        )

    def gives(self, worker: WorkerId, digest: Digest) -> bool:
        """Whether the file is of the version that the worker was last told to keep."""
        known = self._workers.get(worker)
        if known is None or digest not in known.given.files:
            return False
        known.heard_s = self._run.run_time()
        return True

    def companion(self, worker: WorkerId, digest: Digest) -> bytes | None:
        """What stands beside the weights in exports, of that version; None where it is no such thing."""
        return self._workers[worker].given.companions.get(digest) if self.gives(worker, digest) else None

    def holders(self, version: Version, manifest: Digest) -> int:
        """Workers that are here and say that they have all of it."""
        return sum(known.held == (version, manifest) for worker, known in self._workers.items() if self._here(worker))

    @property
    def newest_held(self) -> Version | None:
        """The newest version that somebody who is here has whole, the present one or not."""
        held = [known.held[0] for worker, known in self._workers.items() if known.held and self._here(worker)]
        return max(held, default=None)

    def _refusal(self, worker: WorkerId) -> str:
        if not self.are_given:
            raise Refused("this run gives nobody whole versions (the setting archives)")
        most = self._run.settings.archives
        others = sum(self._keeps(one, known) for one, known in self._workers.items() if one != worker)
        if others < most:
            return ""
        self._workers.pop(worker, None)
        return f"{others} workers keep whole versions already, as many as this run's operator wants"

    def _keeps(self, worker: WorkerId, known: _Archiving) -> bool:
        """Whether one still does: somebody who stopped has not asked for what came since."""
        is_current = known.given.version == self._run.pump.engine.state.version
        return self._here(worker) and (is_current or self._run.run_time() - known.heard_s < TAKING_S)

    def _here(self, worker: WorkerId) -> bool:
        record = self._run.pump.engine.state.workers.get(worker)
        return record is not None and record.present and self._run.sessions.has(worker)

    def _taken(self) -> frozenset[int]:
        """Versions that are on their way to somebody. Asked by the thread that writes versions."""
        now_s = self._run.run_time()
        return frozenset(
            known.given.version
            for known in tuple(self._workers.values())
            if now_s - known.heard_s < TAKING_S and (known.held is None or known.held[0] != known.given.version)
        )

    async def _present(self) -> _Given:
        async with self._making:
            version = Version(self._run.pump.engine.state.version)
            if self._newest is None or self._newest.version != version:
                self._newest = await asyncio.to_thread(self._made, version)
            return self._newest

    def _made(self, version: Version) -> _Given:
        run, facts = self._run, self._facts
        digest = run.versions.manifest_digest(version)
        if facts is None or digest is None:
            raise Refused(f"version {version} cannot be given at present")
        companions = facts.companions()
        index = archive_index(
            run_id=run.run_id,
            settings=facts.settings(),
            manifest_json=run.versions.manifest_bytes(digest),
            version=version,
            card=run.dataset.card,
            dtype=facts.dtype,
            companions=companions,
            authority=run.authority,
            signing=run.manifest_identity,
        )
        if len(index.record_json) > MAX_RECORD_REPLY_BYTES:
            raise Refused("what this run says of itself is too long to be archived by workers")
        contents = {index.record.companions[name].digest: content for name, content in companions.items()}
        return _Given(version=version, index=index, files=frozenset(index.named()), companions=contents)

"""How far a lease has come, on disk, so that a killed worker goes on at its last local step.

Decides when progress is written and what may be taken up again: only the state of the very same computation (lease,
base blocks, arithmetic class), and only if every byte is what was written. A lease is a pure function, so the
result of an interrupted one is the same, on a CPU to the last bit. Always: the tensors are durable before the record
that names them; a torn or foreign file is removed, never loaded; a full disk costs the progress, not the lease.
Touches its own folder; knows nothing of models. Loads torch only where tensors are saved or loaded: an agent that
trains in another process looks after the folder, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.errors import StorageTrouble
from protocol.folders import sync_folder
from protocol.ids import BlockId, Digest, LeaseId
from protocol.lease import Lease
from protocol.private_files import write_private
from protocol.specs import WireSpec
from protocol.storage import is_full, telling_storage_trouble
from protocol.tensor_headers import bytes_of, header_of_wires
from protocol.text import human_bytes
from worker.disk import private_folder
from worker.files import file_digest
from worker.ports import LeaseProgress
from worker.sentences import rough_duration
from worker.train.daily_writes import DailyWrites

if TYPE_CHECKING:
    from torch import Tensor

    from worker.train.local_state import LocalState

FORMAT = 3
"""Of what is kept and of the computation it is taken of: 3 since logits are made some tokens at a time."""
DEFAULT_EVERY_S = 30.0
"""At most this much work is done again after a kill, where the disk is fast enough."""
MOST_SHARE_OF_TIME = 0.02
"""Writing may take this share of the training time: on a slow disk progress is written less often."""
TOLD_FROM_S = 60.0
"""Progress that is written at least so often is nothing to tell of."""
RECORD = "progress.json"

log = structlog.get_logger()


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    computation: str
    digest: Digest = Field(pattern=r"^[0-9a-f]{64}$")
    payload_bytes: int = Field(ge=0)
    step: int = Field(ge=1)
    micro_batch: int = Field(ge=1)
    recut: bool = False
    train_s: float = Field(ge=0.0, allow_inf_nan=False)


def computation_of(lease: Lease, digests: Mapping[BlockId, Digest], arithmetic: str) -> str:
    """Names what is computed: progress is taken up only where this is the same. The deadline is not part of it.

    `arithmetic`: the class (worker/machine/arithmetic.py). A lease that was begun with other threads, on another device
    or release, starts over: what came of both no auditor could compute again.
    """
    import torch

    whole = dataclasses.asdict(lease)
    fields = {field.name: whole[field.name] for field in dataclasses.fields(Lease)}
    parts = [FORMAT, fields, sorted(digests.items()), arithmetic, torch.__version__]
    return f"{lease.lease_id}:{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()}"


class LeaseStates:
    """Holds the progress of at most one lease."""

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)

    def save(self, computation: str, state: LocalState) -> None:
        """Replace what is here by `state`, durably; StorageTrouble where the disk does not take it."""
        temporary = self._folder / ".progress.tmp"
        try:
            with telling_storage_trouble(self._folder):
                _write(temporary, state)
                digest, payload_bytes = file_digest(temporary), temporary.stat().st_size
                temporary.replace(self._payload(digest))
                sync_folder(self._folder)
            record = _Record(
                computation=computation,
                digest=digest,
                payload_bytes=payload_bytes,
                step=state.step,
                micro_batch=state.micro_batch,
                recut=state.recut,
                train_s=state.train_s,
            )
            write_private(self._folder / RECORD, record.model_dump_json().encode())
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        self._remove_payloads(keep=self._payload(digest))

    def load(self, computation: str) -> LocalState | None:
        """The progress of `computation`; None where there is none. Anything else that lies here is removed."""
        from safetensors import SafetensorError

        try:
            record = _Record.model_validate_json((self._folder / RECORD).read_bytes())
            state = self._state_of(record) if record.computation == computation else None
        except FileNotFoundError:
            state = None
        except (ValidationError, ValueError, SafetensorError, OSError) as error:
            log.warning("lease_progress_dropped", reason=str(error)[:200])
            state = None
        if state is None:
            self.clear()
        return state

    def keep_only(self, lease_id: LeaseId) -> None:
        """Progress of another lease goes: no lease comes back after another one was granted."""
        try:
            record = _Record.model_validate_json((self._folder / RECORD).read_bytes())
        except (ValidationError, OSError):
            record = None
        if record is None or record.computation.rpartition(":")[0] != lease_id:
            self.clear()

    @property
    def used_bytes(self) -> int:
        """Bytes of what is here."""
        return sum(path.stat().st_size for path in self._folder.iterdir())

    def clear(self) -> None:
        """Forget what is here; the record goes first."""
        with contextlib.suppress(OSError):  # what cannot be deleted is not loaded either: see `computation_of`
            (self._folder / RECORD).unlink(missing_ok=True)
            self._remove_payloads(keep=None)

    def _state_of(self, record: _Record) -> LocalState:
        from worker.train.local_state import LocalState

        path = self._payload(record.digest)
        if path.stat().st_size != record.payload_bytes or file_digest(path) != record.digest:
            raise ValueError("the tensors are not what the record promises")
        tensors = _Lying(path)
        return LocalState(
            step=record.step,
            micro_batch=record.micro_batch,
            recut=record.recut,
            train_s=record.train_s,
            tensors=tensors,
        )

    def _payload(self, digest: Digest) -> Path:
        return self._folder / f"{digest}.safetensors"

    def _remove_payloads(self, keep: Path | None) -> None:
        for path in [*self._folder.glob("*.safetensors"), *self._folder.glob(".*")]:
            if path != keep:
                path.unlink(missing_ok=True)


class LeaseKeeper:
    """Progress of one lease: says when it is due to be written, and writes it."""

    def __init__(
        self,
        states: LeaseProgress,
        computation: str,
        *,
        every_s: float = DEFAULT_EVERY_S,
        told: Callable[[str], None] = lambda _reason: None,
        room_for: Callable[[int], bool] = lambda _state_bytes: True,
        give_way: Callable[[], bool] = lambda: False,
        writes: DailyWrites | None = None,
        told_rarer: Callable[[str], None] = lambda _sentence: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._states = states
        self._computation = computation
        self._every_s = every_s
        self._told = told
        self._room_for = room_for
        self._give_way = give_way
        self._writes = writes or DailyWrites(clock=clock)
        self._told_rarer = told_rarer
        self._clock = clock
        self._next_s = clock() + every_s
        self._refused = False

    def load(self) -> LocalState | None:
        """Where an earlier process left this very lease."""
        return self._states.load(self._computation)

    def due(self) -> bool:
        """Whether the next step should wait for progress to be written."""
        return self._clock() >= self._next_s and self._writes.may()

    def save(self, state: LocalState) -> None:
        """Write it. A disk that refuses is told once; the lease goes on without."""
        started_s = self._clock()
        state_bytes = sum(tensor.nbytes for tensor in state.tensors.values())
        if not self._room_for(state_bytes):
            self._refuse(f"--disk leaves no room for it: {human_bytes(state_bytes)}, twice while it is replaced")
        else:
            self._save_or_refuse(state)
        took_s = self._clock() - started_s
        self._next_s = self._clock() + max(self._every_s, took_s / MOST_SHARE_OF_TIME if self._every_s else 0.0)

    def _save_or_refuse(self, state: LocalState) -> None:
        try:
            self._states.save(self._computation, state)
        except StorageTrouble as error:
            if is_full(error) and self._give_way():
                self._save_or_refuse(state)
            else:
                self._refuse(str(error))
            return
        size_bytes = sum(tensor.nbytes for tensor in state.tensors.values())
        pause_s = self._writes.wrote(size_bytes)
        if pause_s > max(self._every_s, TOLD_FROM_S) and self._writes.tell_once():
            self._told_rarer(
                f"a lease's progress is {human_bytes(size_bytes)} here and is written every {rough_duration(pause_s)},"
                f" so that this disk is not worn out: {human_bytes(self._writes.bytes_a_day)} a day at most"
                " (--progress-writes)"
            )

    def _refuse(self, reason: str) -> None:
        if not self._refused:
            self._told(f"progress is not kept: {reason}")
        self._refused = True


class _Lying(Mapping[str, "Tensor"]):
    """Tensors of a file, each read when it is asked for; the file may go once it is opened."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._file = cast(Any, safe_open(path, framework="pt"))
        self._names = tuple(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        return cast("Tensor", self._file.get_tensor(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _write(path: Path, state: LocalState) -> None:
    """A tensor at a time, so that what lies on a GPU is never whole in the host's memory; durably."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        names = sorted(state.tensors, key=lambda name: (-state.tensors[name].element_size(), name))  # all aligned
        file.write(header_of_wires({name: _wire_of(state.tensors[name]) for name in names}))
        for name in names:
            file.write(bytes_of(state.tensors[name].cpu().contiguous()))
        file.flush()
        os.fsync(file.fileno())


def _wire_of(tensor: Tensor) -> WireSpec:
    from protocol.tensors import DTYPES

    name = next(name for name, dtype in DTYPES.items() if dtype == tensor.dtype)
    return WireSpec(name, tuple(tensor.shape))

"""A pseudo-gradient as it is sent, and what its encoding loses: the residual, which the next encoding is given.

Decides what a residual's bytes are: for each block one safetensors file in fp32, so that its digest is the same whoever
computes it, and what went in, what is decoded and what comes out add up to the rounding of fp32. Always: a residual
goes in where the lease names it, and it is here, whole; one that is not finite is none; what is left of a submission
that comes to nothing grows to `MOST_RESIDUAL` times the length of what was computed at most, so that refusals do not
add up to a submission that nobody can accept. Never more than one tensor of each kind is in memory, the payload and
all residuals are written as they are made (docs/decisions/0068). Touches nothing: `worker.outbox` keeps the bytes. See
docs/decisions/0030.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import BinaryIO, Protocol

import torch
from torch import Tensor

from aggregation.norms import is_finite, sum_of_squares
from protocol.codecs import FP32, Codec, codec_named
from protocol.errors import MalformedMessage
from protocol.ids import BlockId, Digest, digest_of
from protocol.lease import Lease
from protocol.specs import TensorSpec, submission_name
from protocol.submission import Blocks
from protocol.tensor_headers import header_of
from protocol.tensors import encode_each, encode_one, tensor_readers

MOST_RESIDUAL = 2.0
"""L2 norm, in those of the lease's own pseudo-gradient, block by block: with another one of these it is as long as a
coordinator takes for honest (`screening.max_norm_factor`). What was longer already is half as long after a refusal."""

Reads = Mapping[str, Callable[[], Tensor]]
"""By parameter, what reads a residual's tensor."""


class Drafted(Protocol):
    """Bytes that come in pieces: `worker.outbox.Draft`."""

    @property
    def written_bytes(self) -> int:
        """So far."""

    def add(self, piece: bytes | memoryview) -> None:
        """At the end."""

    def keep(self) -> Digest:
        """All of it, for good."""

    def drop(self) -> None:
        """None of it; fine where it was kept."""


class Shelf(Protocol):
    """Where a submission is written to, and what earlier ones left is read from: `worker.outbox.Outbox`."""

    def payload(self) -> Drafted:
        """A new one."""

    def new_residual(self) -> Drafted:
        """A new one."""

    def kept(self, digest: Digest) -> BinaryIO | None:
        """An earlier residual; None where it is not here, whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenWork:
    """A submission that is written. Digests are of each of the lease's blocks; () where the codec keeps nothing."""

    digest: Digest
    payload_bytes: int
    began: tuple[Digest, ...] = ()
    """What the encoding began with; "": nothing."""
    left: tuple[Digest, ...] = ()
    back: tuple[Digest, ...] = ()
    """What is left where the submission comes to nothing: what it began with, and all that was computed."""


def write_submission(lease: Lease, gradient: Blocks, specs: Sequence[TensorSpec], place: Shelf) -> WrittenWork:
    """Write `gradient`, whose tensors are `specs`, as `lease` wants it sent, and what that leaves; each tensor is asked
    for up to twice.
    """
    codec, ordered = codec_named(lease.codec), sorted(specs)
    payload = place.payload()
    try:
        payload.add(header_of(ordered, codec))
        blocks = [
            _Block(lease, BlockId(block), list(own), codec, place, gradient[BlockId(block)])
            for block, own in groupby(ordered, key=lambda spec: spec.name.partition("/")[0])
        ]
        found = {one.block: one.write(payload) for one in blocks}
        digest = payload.keep()
    except BaseException:
        payload.drop()
        raise
    if not codec.has_state:
        return WrittenWork(digest=digest, payload_bytes=payload.written_bytes)
    books = [found[block] for block in lease.blocks]
    began, left, back = (tuple(digests) for digests in zip(*books, strict=True))
    return WrittenWork(digest=digest, payload_bytes=payload.written_bytes, began=began, left=left, back=back)


class _Block:
    """One block while it is encoded."""

    def __init__(
        self,
        lease: Lease,
        block: BlockId,
        specs: Sequence[TensorSpec],
        codec: Codec,
        place: Shelf,
        gradient: Mapping[str, Tensor],
    ) -> None:
        self.block = block
        self._codec, self._place, self._gradient = codec, place, gradient
        prefix = submission_name(block, "")
        self._specs = [TensorSpec(spec.name.removeprefix(prefix), spec.shape) for spec in specs]
        named = dict(zip(lease.blocks, lease.residuals, strict=False)).get(block) if codec.has_state else None
        self._began = self._found(named) if named else None
        self._named = named if named and self._began is not None else Digest("")
        self._squares: list[tuple[float, float, float]] = []
        """Of each tensor: what was computed, what it began with, their sum."""

    def write(self, payload: Drafted) -> tuple[Digest, Digest, Digest]:
        """What it began with, what is left, what would be given back."""
        left = _Residual(self._place, self._specs) if self._codec.has_state else None
        try:
            for spec in self._specs:
                tensor, began = self._gradient[spec.name], self._begun(spec)
                if left is not None:
                    self._squares.append(self._measured(tensor, began))
                pieces, state = encode_one(spec, tensor, self._codec, began)
                del tensor, began
                for piece in pieces:
                    payload.add(piece)
                if left is not None:
                    left.add(spec, state)
                del state, pieces  # before the next tensor is made
            if left is None:
                return Digest(""), Digest(""), Digest("")
            return self._named, left.keep(), self._back()
        finally:
            if left is not None:
                left.drop()

    def _found(self, digest: Digest) -> Reads | None:
        file = self._place.kept(digest)
        try:
            return None if file is None else tensor_readers(file, self._specs, FP32)
        except MalformedMessage:  # of another shape: another model's, or another release's
            return None

    def _begun(self, spec: TensorSpec) -> Tensor | None:
        return None if self._began is None else self._began[spec.name]()

    def _whole(self, tensor: Tensor, began: Tensor | None, times: float = 1.0) -> Tensor:
        whole = tensor.detach().cpu().float()
        if began is not None:
            whole = whole.add(began, alpha=self._codec.state_decay)
        return whole if times == 1.0 else whole.mul_(times) if began is not None else whole * times

    def _measured(self, tensor: Tensor, began: Tensor | None) -> tuple[float, float, float]:
        before = 0.0 if began is None else sum_of_squares(began)
        return sum_of_squares(tensor), before, sum_of_squares(self._whole(tensor, began))

    def _back(self) -> Digest:
        computed_l2, began_l2, norm_l2 = (math.sqrt(math.fsum(squares)) for squares in zip(*self._squares, strict=True))
        most = max(MOST_RESIDUAL * computed_l2, began_l2 / 2)
        times = 1.0 if norm_l2 <= most else most / norm_l2
        back = _Residual(self._place, self._specs)
        try:
            for spec in self._specs:
                back.add(spec, self._whole(self._gradient[spec.name], self._begun(spec), times))
            return back.keep()
        finally:
            back.drop()


class _Residual:
    """One that is being written; zeros, where a value of it is not finite."""

    def __init__(self, place: Shelf, specs: Sequence[TensorSpec]) -> None:
        self._place, self._specs = place, specs
        self._draft = place.new_residual()
        self._draft.add(header_of(specs, FP32))
        self._finite = True

    def add(self, spec: TensorSpec, tensor: Tensor | None) -> None:
        """The next one; None: zeros."""
        value = torch.zeros(spec.shape) if tensor is None else tensor.detach().cpu()
        self._finite = self._finite and is_finite(value)
        for piece in encode_one(spec, value, FP32)[0]:
            self._draft.add(piece)

    def keep(self) -> Digest:
        """All of it."""
        if self._finite:
            return self._draft.keep()
        self._draft.drop()
        self._draft = self._place.new_residual()
        shapes = {spec.name: spec.shape for spec in self._specs}
        for piece in encode_each(self._specs, lambda name: torch.zeros(shapes[name]), FP32):
            self._draft.add(piece)
        return self._draft.keep()

    def drop(self) -> None:
        """Nothing of it; fine where it was kept."""
        self._draft.drop()


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A submission in memory: as `WrittenWork`."""

    payload: bytes
    began: tuple[Digest, ...] = ()
    left: tuple[Digest, ...] = ()
    back: tuple[Digest, ...] = ()
    residuals: Mapping[Digest, bytes] | None = None
    """The bytes of `left` and `back`."""


def coded(lease: Lease, gradient: Blocks, kept: Callable[[Digest], bytes | None]) -> Coded:
    """`write_submission`, of a small model, to memory; `kept` gives the bytes of a residual, None where it is not
    here.
    """
    place = _Memory(kept)
    specs = [
        TensorSpec(submission_name(block, name), tuple(tensor.shape))
        for block, tensors in gradient.items()
        for name, tensor in tensors.items()
    ]
    made = write_submission(lease, gradient, specs, place)
    payload = place.contents.pop(made.digest)
    residuals = place.contents if made.left else None
    return Coded(payload=payload, began=made.began, left=made.left, back=made.back, residuals=residuals)


class _Memory:
    """A `Shelf`."""

    def __init__(self, kept: Callable[[Digest], bytes | None]) -> None:
        self._kept = kept
        self.contents: dict[Digest, bytes] = {}

    def payload(self) -> Drafted:
        return _InMemory(self.contents)

    def new_residual(self) -> Drafted:
        return _InMemory(self.contents)

    def kept(self, digest: Digest) -> BinaryIO | None:
        content = self._kept(digest)
        return None if content is None else io.BytesIO(content)


class _InMemory:
    def __init__(self, contents: dict[Digest, bytes]) -> None:
        self._contents, self._content = contents, io.BytesIO()

    @property
    def written_bytes(self) -> int:
        return self._content.tell()

    def add(self, piece: bytes | memoryview) -> None:
        self._content.write(piece)

    def keep(self) -> Digest:
        content = self._content.getvalue()
        digest = digest_of(content)
        self._contents[digest] = content
        return digest

    def drop(self) -> None:
        """Nothing lies anywhere."""

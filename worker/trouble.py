"""What an exception means to a volunteer: a cause, and the raw text for whoever has to find out more.

Decides which cause an error of gRPC, of the system or of torch is; where the coordinator named one, it stands. The
texts of libraries are looked at here, and shown nowhere but in the `detail` of `--output json`. Touches nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.causes import Cause
from protocol.errors import ConfigError, DigestMismatch, MalformedMessage, Refused, Unauthenticated
from protocol.storage import is_storage_trouble

_CONNECTION_WORDS = (
    ("connection refused", Cause.CONNECTION_REFUSED),
    ("certificate", Cause.WRONG_CERTIFICATE),
    ("handshake", Cause.NOT_A_COORDINATOR),
    ("ssl", Cause.NOT_A_COORDINATOR),
    ("dns", Cause.NAME_UNKNOWN),
    ("domain name", Cause.NAME_UNKNOWN),
    ("name resol", Cause.NAME_UNKNOWN),
    ("name or service", Cause.NAME_UNKNOWN),
    ("unreachable", Cause.NO_ROUTE),
    ("no route", Cause.NO_ROUTE),
    ("timed out", Cause.NO_ANSWER),
    ("timeout", Cause.NO_ANSWER),
    ("deadline", Cause.NO_ANSWER),
    ("closed", Cause.BROKEN_OFF),
    ("reset", Cause.BROKEN_OFF),
    ("broken pipe", Cause.BROKEN_OFF),
    ("goaway", Cause.BROKEN_OFF),
)
"""What gRPC's texts for a lost or refused connection have in them; the first that is found counts."""

_STATUSES = {
    "DEADLINE_EXCEEDED": Cause.NO_ANSWER,
    "CANCELLED": Cause.BROKEN_OFF,
    "RESOURCE_EXHAUSTED": Cause.OVERLOADED,
    "PERMISSION_DENIED": Cause.NOT_A_COORDINATOR,  # what gRPC makes of a proxy's 403
    "UNAUTHENTICATED": Cause.SESSION_ENDED,
    "UNIMPLEMENTED": Cause.OTHER_VERSION,
    "INTERNAL": Cause.FAILED,
    "UNKNOWN": Cause.FAILED,
    "DATA_LOSS": Cause.MALFORMED,
}

_MEMORY_WORDS = (
    "out of memory",  # CUDA, HIP, XPU, MPS
    "outofmemoryerror",  # torch's own kind, whatever it says
    "can't allocate memory",  # torch's allocator on a CPU
    "cannot allocate memory",
    "not enough memory",  # the same, on Windows
    "status_alloc_failed",  # cuBLAS, cuDNN, cuSOLVER, cuSPARSE and those of ROCm, which allocate by themselves
    "cublas_status_not_initialized when calling `cublascreate",  # its first allocation
)
_DEVICE_WORDS = ("cuda", "cublas", "cudnn", "nccl", "hip error", "device-side")
_LOST_WORDS = ("cuda error:", "hip error:", "device-side assert", "driver shutting down", "acceleratorerror")
"""After these nothing works on the device in this process any more: a driver that was reset, a machine that slept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What was in the way, and the raw text of it."""

    cause: Cause | None
    """None: the text is a sentence of our own."""
    detail: str
    device_lost: bool = False
    """This process cannot use the device any more, and another one may."""


def transport_cause(status: str, details: str) -> Cause:
    """The cause of a call that ended in gRPC `status`, when the coordinator named none."""
    if status != "UNAVAILABLE":
        return _STATUSES.get(status, Cause.REFUSED)
    text = details.lower()
    return next((cause for words, cause in _CONNECTION_WORDS if words in text), Cause.UNREACHABLE)


def trouble_of(error: Exception) -> Trouble:
    """What `error` of a call, or of handling its answer, means."""
    cause = getattr(error, "cause", None)
    if not isinstance(cause, Cause):
        cause = _cause_by_kind(error)
    return Trouble(cause=cause, detail=str(error) or type(error).__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was what was missing, on whatever device; libraries have one word for it each."""
    text = f"{type(error).__name__}: {error}".lower()
    return isinstance(error, MemoryError) or any(words in text for words in _MEMORY_WORDS)


def training_trouble_of(error: Exception) -> Trouble:
    """What `error` in the training thread means; torch reports every failure of a device as RuntimeError."""
    detail = f"{type(error).__name__}: {error}"[:400]
    text = detail.lower()
    if is_out_of_memory(error):
        return Trouble(cause=Cause.OUT_OF_MEMORY, detail=detail)
    if is_storage_trouble(error):
        return Trouble(cause=Cause.LOCAL_STORAGE, detail=detail)
    words_of_devices = (*_DEVICE_WORDS, *_LOST_WORDS)
    on_device = isinstance(error, RuntimeError) and any(words in text for words in words_of_devices)
    if on_device and any(words in text for words in _LOST_WORDS):
        return Trouble(cause=Cause.DEVICE_FAILED, detail=detail, device_lost=True)
    return Trouble(cause=Cause.DEVICE_FAILED if on_device else Cause.TRAINING_FAILED, detail=detail)


def _cause_by_kind(error: Exception) -> Cause | None:
    if isinstance(error, ConfigError):
        return None
    on_the_line = isinstance(error, ConnectionError | TimeoutError)
    if is_storage_trouble(error) or (isinstance(error, OSError) and not on_the_line):
        return Cause.LOCAL_STORAGE
    if isinstance(error, MalformedMessage | DigestMismatch | Unauthenticated):
        return Cause.MALFORMED
    return Cause.REFUSED if isinstance(error, Refused) else Cause.UNREACHABLE

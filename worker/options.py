"""What a volunteer may decide about their machine: one frozen model, validated once. Touches nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from peering.limits import MIN_SHARE_BYTES_PER_S
from protocol.errors import ConfigError
from protocol.limits import STALL_TIMEOUT_S
from worker.pauses import Pauses
from worker.policy import Always, Policy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from protocol.lease import Lease
    from worker.train.trainer import LeaseResult

Output = Literal["auto", "plain", "json", "quiet"]
MAX_THREADS = 1024
MOST_PORT = 65_535
_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?|cuda:\d{1,3},cuda:\d{1,3}", re.ASCII)
_OTHER_DEVICES = {
    "mps": "Apple GPUs are not supported; cpu is",
    "xpu": "Intel GPUs are not supported; cpu is",
    "hip": "an AMD GPU is called cuda too, and needs a ROCm build of PyTorch",
    "rocm": "an AMD GPU is called cuda too, and needs a ROCm build of PyTorch",
}


def check_device(device: str | None) -> None:
    """ConfigError unless `device` is None (whichever is best) or one that this worker can be told to train on."""
    if device is None or _DEVICE.fullmatch(device):
        return
    numbered = "GPUs are numbered from 0, as in cuda:1, or cuda:0,cuda:1 for two"
    why = _OTHER_DEVICES.get(device.partition(":")[0].lower(), numbered)
    raise ConfigError(f"device: expected cpu, cuda or cuda:N, got {device!r}; {why}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How to join a run."""

    link: str = ""
    """A join link, or the `HOST:PORT` of a run that this machine is enrolled in; empty: the only such run."""
    home: Path | None = None
    """Folder for key, enrolment, unsent work and blocks; None: the platform's place for user data."""
    first_home: Path | None = None
    """Of this machine's first worker, where this is another GPU's: its rules count, and its key lets this one in."""
    name: str = ""
    """Shown to the operator and to other volunteers; empty: two words that follow from its key."""
    team: str | None = None
    """Whom its work is to be credited to beside itself; empty: nobody any more; None: as before."""
    device: str | None = None
    """`cpu`, `cuda`, `cuda:N`, or `cuda:N,cuda:M` where the second keeps what the first has no room for; None: a GPU
    where there is one."""
    max_columns: int | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    """Bytes that the run's folder may take; None: what a lease needs, and some GiB of blocks that may serve again."""
    threads: int | None = None
    """torch threads; None: as many as cores."""
    output: Output = "auto"
    measure_speed: bool = True
    """False: say nothing about speed; the coordinator finds out from the first submissions."""
    measures: bool | None = None
    """Offer to measure others' submissions, and versions, for the coordinator, while there is no lease: of use in a run
    that trusts this machine. None: where there is a GPU."""
    share_bytes_per_s: int | None = None
    """Give fetched blocks to other workers, no faster than this; None: nothing, and no port is opened."""
    share_port: int = 0
    """Where others come for them; 0: any port that is free. Of several runs, or GPUs, the first has it."""
    archive: bool = False
    """Keep the newest version whole, momentum and recipe too, so that the run could go on without its operator."""
    p2p: bool = False
    """Take part in the run's peer-to-peer network, in a process of its own: one more way to find a run that moved."""
    p2p_port: int = 0
    """Where others reach this machine in it, if it shares; 0: any port that is free. Of several the first has it."""
    be_relay: bool = False
    """Pass on what other workers of the run give that nobody can connect to, within the rate and rules of the share."""
    keep_progress_every_s: float = 30.0
    """A lease's progress is written to disk this often, for the case that the process is killed; 0: after each step."""
    progress_bytes_a_day: int | None = None
    """No more of it is written to disk a day; None: 200 GB."""
    first_backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    stall_s: float = STALL_TIMEOUT_S
    """A transfer on which nothing moves for so long is broken off and taken up again."""
    pauses: Pauses = field(default_factory=Pauses)
    policy: Policy = field(default_factory=Always)
    """When this machine may work."""
    trainer_hook: Callable[[Lease, LeaseResult], LeaseResult] | None = None
    """Changes the result before it is encoded: how the simulator makes adversaries. Not reachable from the command."""
    batch_hook: Callable[[Lease, NDArray[np.int64]], NDArray[np.int64]] | None = None
    """Changes the sequences before training, likewise."""

    @property
    def trains_here(self) -> bool:
        """Whether training is in the agent's own process, where hooks can reach it."""
        return self.trainer_hook is not None or self.batch_hook is not None

    @property
    def beside_another(self) -> WorkerOptions:
        """For a further worker, or run, of the same machine: a port that was named, and the relay, are the first's."""
        return replace(self, share_port=0, p2p_port=0, be_relay=False)

    def __post_init__(self) -> None:
        check_device(self.device)
        for name in ("max_columns", "memory_bytes", "disk_bytes", "progress_bytes_a_day"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be 1 or more, got {value}")
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise ConfigError(f"threads must be 1 to {MAX_THREADS}, got {self.threads}")
        if self.share_bytes_per_s is not None and self.share_bytes_per_s < MIN_SHARE_BYTES_PER_S:
            raise ConfigError(
                f"--share: at least {MIN_SHARE_BYTES_PER_S // 1000} KB a second are of use to others, got"
                f" {self.share_bytes_per_s} bytes"
            )
        for option, port in (("--share-port", self.share_port), ("--p2p-port", self.p2p_port)):
            if not 0 <= port <= MOST_PORT:
                raise ConfigError(f"{option} must be 0 to {MOST_PORT}, got {port}")
        if self.output not in ("auto", "plain", "json", "quiet"):
            raise ConfigError(f"output: expected auto, plain, json or quiet, got {self.output!r}")

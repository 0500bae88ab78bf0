"""What the edges of one running coordinator share: settings and facts that never change, and the stores.

Decides nothing. Built by `coordinator/edge/server.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from coordinator.datasets import Dataset
from coordinator.edge.mailboxes import Mailboxes
from coordinator.edge.sessions import SessionTable
from coordinator.edge.whereabouts import Whereabouts
from coordinator.engine.config import EngineConfig
from coordinator.run.pump import Pump
from coordinator.run.receipts import ReceiptBook
from coordinator.run.replication import Replication
from coordinator.settings import RunSettings
from coordinator.store.ports import Artifacts
from coordinator.store.registry import Registry
from coordinator.store.versions import Versions
from moe.layout import Layout, block_tensor_specs
from protocol.codecs import FP32
from protocol.identity import PrivateIdentity
from protocol.ids import RunId
from protocol.tensor_headers import payload_size
from protocol.tls import CertificateAuthority


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveFacts:
    """What an archive says of a run beside its manifest."""

    settings: Callable[[], RunSettings]
    dtype: str
    companions: Callable[[], Mapping[str, bytes]]
    """May block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """One open run."""

    run_id: RunId
    settings: RunSettings
    layout: Layout
    dataset: Dataset
    store: Artifacts
    versions: Versions
    registry: Registry
    sessions: SessionTable
    mailboxes: Mailboxes
    pump: Pump
    authority: CertificateAuthority
    manifest_identity: PrivateIdentity
    operator_key: bytes
    run_time: Callable[[], float]
    """What events carry and waits are measured by (coordinator/run/clock.py)."""
    wall_time: Callable[[], float]
    """The calendar, for people and invites; may be set at any moment."""
    lease_length: Callable[[EngineConfig], str]
    """How long leases are, and why, as workers are told."""
    replication: Replication | None = None
    """None in simulations, whose runs nobody follows."""
    receipts: ReceiptBook | None = None
    """None in simulations that write none."""
    archive_facts: ArchiveFacts | None = None
    """None in simulations, whose versions nobody archives."""
    whereabouts: Whereabouts | None = None
    """None in simulations that move nowhere."""

    @property
    def record(self) -> bytes:
        """The run's newest discovery record; empty where there is none."""
        return b"" if self.whereabouts is None else self.whereabouts.record

    @property
    def epoch(self) -> int:
        """Of the machine that leads the run."""
        return 0 if self.replication is None else self.replication.epoch

    @property
    def max_block_bytes(self) -> int:
        """The largest block's payload, as workers download it."""
        return max(payload_size(block_tensor_specs(self.layout, block), FP32) for block in self.layout.blocks)

"""A leader's side of a standby over a real journal and store, without a coordinator around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from coordinator.run.folder import RunFolder
from coordinator.run.replication import Replication
from coordinator.store.artifacts import ArtifactStore
from coordinator.store.journal import Journal
from coordinator.store.versions import Versions


class Leader:
    """A replication, with what lies beneath it."""

    def __init__(self, run: RunFolder) -> None:
        self.journal = Journal.open(run.journal_path)
        self.store: ArtifactStore = run.artifacts()
        self.versions = Versions(run.root / "versions", self.store.blocks, run.layout())
        self.replication = Replication(run, self.journal, self.store, self.versions)

    async def commit(self, **record: Any) -> int:
        """One record, as the pump would; its position."""
        records = [json.dumps(record)]
        self.journal.append(records)
        await self.replication.settled(records, self.journal.last_position)
        return self.journal.last_position


def pins_in(root: Path) -> list[Path]:
    return list(root.rglob(".pins-*"))

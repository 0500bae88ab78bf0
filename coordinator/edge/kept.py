"""What of a run's present version other machines hold: what would be left if this machine were gone.

Decides how that is counted and told. Workers that share say which blocks they have (edge/sources.py), in full precision
and checked; a follower has everything. Momentum, and masters where a version has them, are downloaded by no worker.
Always: a block counts only while a worker that has it is here. Touches the version's manifest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from coordinator.edge.status import KeptStatus
from coordinator.run.replication import StandbyState
from coordinator.store.versions import Versions
from protocol.ids import Digest

if TYPE_CHECKING:
    from protocol.manifest import Manifest

MOST_NAMED = 8


def kept_elsewhere(
    versions: Versions, version: int, is_held: Callable[[Digest], bool], standby: StandbyState | None
) -> KeptStatus | None:
    """Of the version's blocks, those that no other machine has; None where the version cannot be read at present."""
    digest = versions.manifest_digest(version)
    if digest is None:
        return None
    manifest = versions.manifest(digest)
    follows = standby is not None and standby.attached and not standby.behind
    nowhere = () if follows else tuple(block for block, ref in manifest.blocks.items() if not is_held(ref.digest))
    return KeptStatus(
        version=version,
        blocks=len(manifest.blocks),
        nowhere_else=len(nowhere),
        named=tuple(map(str, nowhere[:MOST_NAMED])),
        told=_told(manifest, version, nowhere, follows=follows),
    )


def _told(manifest: Manifest, version: int, nowhere: tuple[str, ...], *, follows: bool) -> str:
    if follows:
        return f"version {version}: all of it, by the follower"
    count = len(manifest.blocks)
    beside = " and ".join(("momentum",) * bool(manifest.momenta) + ("masters",) * bool(manifest.masters))
    only_here = f"; {beside} by nobody (`coordinator archive` copies them)" if beside else ""
    if not nowhere:
        return f"version {version}: all {count} blocks, by workers that share{only_here}"
    if len(nowhere) == count:
        return f"version {version}: nothing of it; who shares, follows or copies an archive would have it"
    named = ", ".join(map(str, nowhere[:MOST_NAMED])) + (
        f" and {len(nowhere) - MOST_NAMED} more" if len(nowhere) > MOST_NAMED else ""
    )
    return f"version {version}: {count - len(nowhere)} of {count} blocks; no other machine has {named}{only_here}"

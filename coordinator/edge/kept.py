"""What of a run's present version other machines hold: what would be left if this machine were gone.

Decides how that is counted and told. Workers that share say which blocks they have (edge/sources.py), in full precision
and checked; a follower has everything, and so have workers that archive (edge/archives.py), which alone download
momentum, and masters where a version has them. Always: a block counts only while a worker that has it is here. Touches
the version's manifest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from coordinator.edge.status import KeptStatus
from coordinator.run.replication import StandbyState
from coordinator.store.versions import Versions
from protocol.ids import Digest, Version

if TYPE_CHECKING:
    from protocol.manifest import Manifest

MOST_NAMED = 8


class Archived(Protocol):
    """What workers say that they keep whole."""

    def holders(self, version: Version, manifest: Digest) -> int:
        """How many have this version."""

    @property
    def newest_held(self) -> Version | None:
        """The newest that anybody has; None: none."""


def kept_elsewhere(
    versions: Versions,
    version: Version,
    is_held: Callable[[Digest], bool],
    standby: StandbyState | None,
    archives: Archived,
) -> KeptStatus | None:
    """Of the version's blocks, those that no other machine has; None where the version cannot be read at present."""
    digest = versions.manifest_digest(version)
    if digest is None:
        return None
    manifest = versions.manifest(digest)
    follows = standby is not None and standby.attached and not standby.behind
    keep = archives.holders(version, digest)
    is_whole = follows or keep > 0
    nowhere = () if is_whole else tuple(block for block, ref in manifest.blocks.items() if not is_held(ref.digest))
    return KeptStatus(
        version=version,
        blocks=len(manifest.blocks),
        nowhere_else=len(nowhere),
        named=tuple(map(str, nowhere[:MOST_NAMED])),
        told=f"version {version}: {_told(manifest, nowhere, keep, follows=follows)}{_before(version, archives)}",
    )


def _before(version: Version, archives: Archived) -> str:
    newest = archives.newest_held
    return "" if newest is None or newest == version else f"; all of version {newest}, by workers that archive"


def _told(manifest: Manifest, nowhere: tuple[str, ...], keep: int, *, follows: bool) -> str:
    if follows:
        return "all of it, by the follower"
    if keep:
        return f"all of it, by {keep} worker{'s' * (keep > 1)} that archive{'s' * (keep == 1)}"
    count = len(manifest.blocks)
    beside = " and ".join(("momentum",) * bool(manifest.momenta) + ("masters",) * bool(manifest.masters))
    only_here = f"; {beside} by nobody (`worker join --archive` keeps them)" if beside else ""
    if not nowhere:
        return f"all {count} blocks, by workers that share{only_here}"
    if len(nowhere) == count:
        return "nothing of it; who shares, archives or follows would have it"
    named = ", ".join(map(str, nowhere[:MOST_NAMED])) + (
        f" and {len(nowhere) - MOST_NAMED} more" if len(nowhere) > MOST_NAMED else ""
    )
    return f"{count - len(nowhere)} of {count} blocks; no other machine has {named}{only_here}"

"""Every decoder that sees bytes from the network, or from a file that may be torn, by name."""

from __future__ import annotations

from tests.fuzz.target import Target
from tests.fuzz.targets import coordinator, downloads, files, peers, protocol, standby, worker

TARGETS: dict[str, Target] = {
    target.name: target
    for room in (protocol, worker, downloads, coordinator, standby, peers, files)
    for target in room.TARGETS
}

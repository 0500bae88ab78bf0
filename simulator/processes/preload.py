"""Imported once by the fork server, so that each worker process starts with everything heavy already in memory.

Decides nothing. Runs no tensor operation and opens no gRPC channel: threads of either would not survive the fork.
"""

from __future__ import annotations

import coordinator.edge.server  # noqa: F401
import worker.join  # noqa: F401
from protocol.collection import keep_what_is_read

keep_what_is_read()

"""The version of the engine's decisions. A journal is replayed only by the engine that wrote it.

Raise it with every change after which the same events could lead to another state or other commands.
"""

from __future__ import annotations

ENGINE_VERSION = 9

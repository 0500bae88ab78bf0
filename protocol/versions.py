"""Which protocol versions are taken besides the newest, by a coordinator and by a worker.

Decides who understands whom: the newest version and the one before, so that an operator and volunteers need not update
on the same day. A field of the recipe that came with a version is unknown to those before it, which would train with
its default: they are taken as long as the run leaves it there. A session's version stands in the request that opens it,
under the worker's signature, and in its answer. Always: where two newest versions differ, the older is spoken.
Touches nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from protocol.causes import Cause
from protocol.errors import Refused
from protocol.limits import PROTOCOL_VERSION
from protocol.recipe import Recipe

OLDEST_VERSION = 4
"""The release before spoke it. Raise it with PROTOCOL_VERSION, or leave it two behind with a reason."""
SINCE: Mapping[str, int] = {}
"""Each field of the recipe that came with a version above OLDEST_VERSION: the version."""


CUT_SINCE = 5
"""From this version on a worker knows of columns cut into parts; before it, one would train whole columns."""


def check_version(version: int, recipe: Recipe, column_parts: int, since: Mapping[str, int] = SINCE) -> None:
    """A worker that speaks `version` can work for a run of this recipe and cut, or Refused with who must update."""
    if not OLDEST_VERSION <= version <= PROTOCOL_VERSION:
        newer = "worker's" if version < OLDEST_VERSION else "coordinator's"
        raise Refused(
            f"the worker speaks protocol version {version}, this coordinator {OLDEST_VERSION} to {PROTOCOL_VERSION}; "
            f"update the {newer} barnraise",
            cause=Cause.OTHER_VERSION,
        )
    if column_parts > 1 and version < CUT_SINCE:
        raise Refused(
            f"this run cuts its columns into {column_parts} parts, which came with protocol version {CUT_SINCE}, and "
            f"the worker speaks {version}; update the worker's barnraise",
            cause=Cause.OTHER_VERSION,
        )
    plain = {field.name: field.default for field in dataclasses.fields(Recipe)}
    for name, came in since.items():
        if came > version and getattr(recipe, name) != plain[name]:
            raise Refused(
                f"this run sets {name}, which came with protocol version {came}, and the worker speaks {version}; "
                "update the worker's barnraise",
                cause=Cause.OTHER_VERSION,
            )

"""Who understands whom: what a run needs of a worker's version beyond the versions that are taken."""

from __future__ import annotations

import pytest

from protocol.causes import Cause
from protocol.errors import Refused
from protocol.limits import PROTOCOL_VERSION
from protocol.recipe import Recipe
from protocol.versions import CUT_SINCE, OLDEST_VERSION, check_version


def test_cut_columns_are_for_those_who_know_of_them() -> None:
    recipe = Recipe()
    for version in range(OLDEST_VERSION, PROTOCOL_VERSION + 1):
        check_version(version, recipe, column_parts=1)
    check_version(CUT_SINCE, recipe, column_parts=4)
    with pytest.raises(Refused, match="cuts its columns into 4 parts") as refused:
        check_version(CUT_SINCE - 1, recipe, column_parts=4)
    assert refused.value.cause is Cause.OTHER_VERSION

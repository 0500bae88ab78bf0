"""A process that is to end with its parent; tests/worker/test_apart.py kills a real one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from protocol.parent import as_parent

CHILD = """
import os
from protocol.parent import end_with_parent
end_with_parent()
print("lives", *[name for name in os.environ if name.startswith("BARNRAISE")])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no other system can be asked to")
@pytest.mark.parametrize(
    ("told", "said"),
    [(as_parent(), "lives\n"), ({}, "lives\n"), (dict.fromkeys(as_parent(), "999999999"), "")],
    ids=["its parent", "nobody", "one that has gone"],
)
def test_a_child_lives_with_the_parent_that_it_was_told_of(told: dict[str, str], said: str) -> None:
    environment = {**os.environ, **told}
    found = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, check=True, text=True)
    assert found.stdout == said

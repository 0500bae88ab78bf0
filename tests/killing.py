"""Processes that are killed at a chosen step of their writing: each rename, each new file, each folder made or removed.

Forked, so that a point costs what the work costs and no import; the step is counted by Python's own audit events.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable

WRITING = frozenset({"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "sqlite3.connect"})


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do `work` in a child that dies by SIGKILL just before its `step`-th writing call; whether it came to that."""
    child = os.fork()
    if child == 0:
        gc.freeze()  # the parent's garbage is not the child's: a channel of gRPC would wait for threads it has not
        _live(step, work)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert os.waitstatus_to_exitcode(status) == 0, f"the child failed before step {step}"
    return False


def every_kill(work: Callable[[], object], after: Callable[[int], None], *, stride: int = 1) -> int:
    """Kill `work` at step 1, 1 + stride and so on until it ends by itself, calling `after` each time; the last step."""
    step = 1
    while killed_at(step, work):
        after(step)
        step += stride
    return step - stride


def _live(step: int, work: Callable[[], object]) -> None:
    seen = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        flags = arguments[2] if event == "open" else 0
        if event in WRITING or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)):
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(count)
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

"""Blocking work beside the event loop, in threads that never keep the process from leaving.

`asyncio.to_thread` joins its threads when the loop closes, so a name look-up or an import could hold up a worker that
was told to go. These are daemon threads; `busy` says whether one is still at it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


class Threads:
    """Runs functions in daemon threads and awaits their results; a `Background` (worker/ports.py)."""

    def __init__(self) -> None:
        self._threads: set[threading.Thread] = set()

    @property
    def busy(self) -> bool:
        """Whether a function is still running."""
        return any(thread.is_alive() for thread in self._threads)

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """`function(*arguments)`, awaited. Cancelling stops the waiting, not the function."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def resolve(result: Result | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]  # None only where Result is

        def work() -> None:
            result, failure = None, None
            try:
                result = function(*arguments)
            except BaseException as error:
                failure = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(resolve, result, failure)

        self._threads = {thread for thread in self._threads if thread.is_alive()}
        thread = threading.Thread(target=work, name=f"background-{function.__name__}", daemon=True)
        self._threads.add(thread)
        thread.start()
        return await future

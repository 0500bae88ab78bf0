"""Who may order from elsewhere: operators' keys of a served run, given and taken over its own socket.

Decides the order of things: a key is noted before it works, and is worth nothing before its end is noted; its sessions,
and its logins on the page, end with it. Touches the registry, the sessions and, for the event, the pump.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from coordinator.edge.operators import Orderer, with_key
from coordinator.edge.served import RunContext
from coordinator.engine.events import OperatorKeyAdded, OperatorKeyRevoked
from coordinator.run.operator_keys import asked_key, key_row
from coordinator.store.operators import OperatorKey
from protocol.errors import MalformedMessage
from protocol.local_socket import Json


class KeyKeeper:
    """Of one served run."""

    def __init__(self, run: RunContext, log_out: Callable[[str], None]) -> None:
        """`log_out`: ends what somebody of this name has open on the page."""
        self._run = run
        self._log_out = log_out
        self._changing = asyncio.Lock()

    async def add(self, who: Orderer, request: Json) -> Json:
        """Take a key in; again is fine."""
        name, public_key, role = (_text(request, field) for field in ("name", "public_key", "role"))
        key = asked_key(name, public_key, role, self._run.wall_time())
        keys = self._run.registry.operators
        async with self._changing:
            changes = keys.check(key)
            if changes:
                at_s = self._run.run_time()
                added = OperatorKeyAdded(at_s=at_s, actor=who.name, operator=key.name, role=key.role.value)
                await self._run.pump.submit(added)
                await asyncio.to_thread(keys.add, key)
                self._end(key)  # what is open has the role of before
        return {**key_row(key), "changed": changes}

    async def revoke(self, who: Orderer, request: Json) -> Json:
        """Take a key back."""
        async with self._changing:
            key = await asyncio.to_thread(self._run.registry.operators.revoke, _text(request, "name"))
            self._end(key)
            at_s = self._run.run_time()
            await self._run.pump.submit(OperatorKeyRevoked(at_s=at_s, actor=who.name, operator=key.name))
        return {**key_row(key), "changed": True}

    async def list(self) -> Json:
        """All of them."""
        return {"keys": [key_row(one) for one in self._run.registry.operators.all()]}

    def _end(self, key: OperatorKey) -> None:
        self._run.sessions.close_operators(key.public_key)
        self._log_out(with_key(key).name)


def _text(request: dict[str, Any], name: str) -> str:
    text = request.get(name)
    if not isinstance(text, str) or len(text) > 200:
        raise MalformedMessage(f"{name} must be a text")
    return text

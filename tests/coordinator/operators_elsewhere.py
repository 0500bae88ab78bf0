"""An operator elsewhere, with a key of her own."""

from __future__ import annotations

import asyncio
from typing import Any

from coordinator.edge.elsewhere import Elsewhere
from coordinator.edge.operator_client import change_operator_key
from coordinator.edge.server import CoordinatorServer
from coordinator.run.folder import RunFolder
from coordinator.run.operator_keys import KeyOrder
from protocol.identity import PrivateIdentity
from protocol.joinlink import JoinLink

MARIA = PrivateIdentity.generate()


async def let_in(run: RunFolder, role: str = "operator", name: str = "maria") -> dict[str, Any]:
    order = KeyOrder(name=name, public_key=MARIA.public_key.hex(), role=role)
    return (await asyncio.to_thread(change_operator_key, run, order))[0]


def elsewhere(run: RunFolder, server: CoordinatorServer) -> Elsewhere:
    link = JoinLink(host="127.0.0.1", port=server.port, fingerprint=run.authority().fingerprint)
    return Elsewhere(link=link, identity=MARIA)

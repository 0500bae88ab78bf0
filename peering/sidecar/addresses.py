"""Hosts and ports as libp2p writes them, and back. Touches nothing."""

from __future__ import annotations

import ipaddress

from protocol.errors import ConfigError
from protocol.joinlink import Bootstrap


def multiaddr_of(host: str, port: int) -> str:
    """`/ip4/HOST/tcp/PORT`, or with ip6 or dns."""
    try:
        kind = f"ip{ipaddress.ip_address(host).version}"
    except ValueError:
        kind = "dns"
    return f"/{kind}/{host}/tcp/{port}"


def bootstrap_of(peer_id: str, multiaddr: str) -> Bootstrap | None:
    """The peer at a plain TCP address; None where that is none, as with circuits through a relay."""
    parts = multiaddr.strip("/").split("/")
    if len(parts) < 4 or parts[0] not in {"ip4", "ip6", "dns", "dns4", "dns6"} or parts[2] != "tcp":
        return None
    if len(parts) > 4 and parts[4:] != ["p2p", peer_id]:
        return None
    try:
        return Bootstrap(peer_id=peer_id, host=parts[1], port=int(parts[3]))
    except (ConfigError, ValueError):
        return None

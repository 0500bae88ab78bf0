"""What counts as a host, for join links and certificates: a DNS name (RFC 1123, and underscores) or an address."""

from __future__ import annotations

import ipaddress
import re

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*\.?")


def is_host(text: str) -> bool:
    """Whether `text` is an ASCII host name or a bare IPv4 or IPv6 address without a zone."""
    if ":" not in text:
        return _NAME.fullmatch(text) is not None
    try:
        return ipaddress.IPv6Address(text).scope_id is None  # a zone such as %eth0 means something on one machine only
    except ValueError:
        return False

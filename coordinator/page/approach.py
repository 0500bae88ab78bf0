"""How a browser came to the page, and what it sent: what has to hold before anybody logs in or orders anything.

Decides that this is over HTTPS (a proxy on this machine says so) or between two ends on this machine, and that what a
form sends comes from a page of ours. Always: a form is small, comes soon, and each of its fields once.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping
from enum import StrEnum
from urllib.parse import parse_qsl

from starlette.requests import Request

from protocol.errors import ConfigError, MalformedMessage
from protocol.hosts import canonical_host, split_port

MOST_FORM_BYTES = 8 * 1024
MOST_FIELDS = 16
FORM_S = 10.0
HTTPS_COOKIE = "__Host-barnraise"
"""The prefix has browsers take it over HTTPS alone, for this host alone (RFC 6265bis, section 4.1.3)."""


class Approach(StrEnum):
    """How somebody came."""

    HTTPS = "https"
    LOOPBACK = "http"
    """Nothing between browser and page but this machine, or a tunnel that ends on it."""
    OPEN = ""
    """Anybody on the way can read it, or nobody knows."""


def approach_of(request: Request) -> Approach:
    """As far as the page can tell: what a proxy says counts where it is on this machine."""
    if request.client is None or not _is_loopback(request.client.host):
        return Approach.OPEN
    told = request.headers.get("x-forwarded-proto")
    if told is not None:
        return Approach.HTTPS if told.strip().lower() == "https" else Approach.OPEN
    if "forwarded" in request.headers or "x-forwarded-for" in request.headers:
        return Approach.OPEN
    return Approach.LOOPBACK if _is_loopback(_host(request)) else Approach.OPEN


def is_from_our_page(request: Request, approach: Approach) -> bool:
    """Whether a page of this very origin sends it: browsers say which one does, and no script can say otherwise."""
    origin = request.headers.get("origin", "")
    return bool(approach) and origin.lower() == f"{approach.value}://{request.headers.get('host', '').lower()}"


def cookie_name(request: Request, approach: Approach) -> str:
    """Over plain HTTP no browser takes `__Host-`, and not every one Secure; cookies know no ports, so the name does."""
    if approach is Approach.HTTPS:
        return HTTPS_COOKIE
    port = split_port(request.headers.get("host", "localhost"))[1] or 80
    return f"barnraise-{port}"


def set_cookie(request: Request, approach: Approach, value: str) -> str:
    """The header's value: for this visit, sent to nobody else, and out of every script's reach. Empty: forget it."""
    secure = "; Secure" if approach is Approach.HTTPS else ""
    ended = "" if value else "; Max-Age=0"
    return f"{cookie_name(request, approach)}={value}; Path=/; HttpOnly; SameSite=Strict{secure}{ended}"


async def form_of(request: Request) -> Mapping[str, str]:
    """What was filled in. MalformedMessage where it is no form of ours."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise MalformedMessage("this takes a form")
    body = bytearray()
    try:
        async with asyncio.timeout(FORM_S):
            async for piece in request.stream():
                body += piece
                if len(body) > MOST_FORM_BYTES:
                    raise MalformedMessage(f"a form has at most {MOST_FORM_BYTES} bytes")
    except TimeoutError:
        raise MalformedMessage("the form did not come to its end") from None
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
    except ValueError:
        raise MalformedMessage("the form is not UTF-8, or has too many fields") from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise MalformedMessage("the form says something twice")
    return fields


def _host(request: Request) -> str:
    try:
        return canonical_host(split_port(request.headers.get("host", ""))[0])
    except ConfigError:
        return ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback

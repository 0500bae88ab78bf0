"""What counts as a host, wherever one is written: `--host`, `--advertise`, join links, certificates, what is dialled.

Decides the one form of each name and address, and which of them nobody can dial. Always: what comes out of
`canonical_host` is ASCII, goes into a link, a certificate and a resolver as it is, and is its own canonical form.

Names follow RFC 1123, with underscores, which home networks and containers use; other alphabets become ASCII by UTS #46
without its transitional mappings (Python's own codec is IDNA 2003 and turns `straße` into `strasse`, which may be
somebody else's). A name that ends in a number is an IPv4 address or nothing (https://url.spec.whatwg.org/#host-parsing):
resolvers take `127.1` and `0177.0.0.1` for addresses, and not all for the same. IPv6 is written as in RFC 5952. Touches
nothing.
"""

from __future__ import annotations

import ipaddress
import re

from protocol.errors import ConfigError

MAX_NAME_CHARACTERS = 253
MAX_LABEL_CHARACTERS = 63
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - told apart, not bound

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[0-9]{1,5}")
_BROADCAST = "255.255.255.255"
_SHOWN = 80


def canonical_host(text: str) -> str:
    """The one form of a host name or address: lower-case ASCII without a last dot, an address without brackets.

    `0.0.0.0` and `::` are hosts here: one can listen on them. Raises ConfigError with what is wrong and how it is
    written instead.
    """
    bare = text
    if text.startswith("[") and text.endswith("]"):
        bare = text[1:-1]
        if ":" not in bare:
            raise _not_a_host(text, "only an IPv6 address stands in brackets")
    if not bare:
        raise _not_a_host(text, "it is empty; write a name such as coordinator.example.org, or an address")
    if ":" in bare:
        return _ipv6(text, bare)
    name = _ascii_name(text, bare).removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _ipv4(text, name)
    _check_name(text, name, labels)
    return name


def dialable_host(text: str) -> str:
    """`canonical_host`, for a host that others connect to: ConfigError for what nobody can dial, too."""
    host = canonical_host(text)
    if host in WILDCARDS:
        raise ConfigError(
            f"{text[:_SHOWN]!r} means every address of a machine, so nobody can dial it: write the name or address by"
            " which others reach it"
        )
    address = _address(host)
    if address is None:
        return host
    if address.is_multicast or host == _BROADCAST:
        raise ConfigError(f"{text[:_SHOWN]!r} addresses many machines, so nobody can dial it: write one machine's")
    if address.version == 6 and address.is_link_local:
        raise ConfigError(
            f"{text[:_SHOWN]!r} is a link-local address, which cannot be dialled without the name of an interface, and"
            " that differs from machine to machine: write a global or unique local address"
        )
    return host


def split_port(text: str) -> tuple[str, int | None]:
    """Host, as it is written, and port of `HOST`, `HOST:PORT`, `[IPV6]`, `[IPV6]:PORT` or a bare IPv6 address."""
    if text.startswith("["):
        inside, bracket, rest = text.partition("]")
        host, port = inside + bracket, rest.removeprefix(":") if rest.startswith(":") else None
        if rest and port is None:
            raise _not_a_host(text, "after ] comes the end, or a colon and a port")
    else:
        host, _, after = text.partition(":")
        port = after if text.count(":") == 1 else None
        host = host if port is not None else text
    if port is None:
        return host, None
    if not _PORT.fullmatch(port):
        raise _not_a_host(text, f"what follows the colon, {port[:20]!r}, is not a port")
    return host, checked_port(int(port))


def checked_port(port: int) -> int:
    """`port`, if it is one that can be dialled; ConfigError otherwise."""
    if not 1 <= port <= 65535:
        raise ConfigError(f"port must be 1 to 65535, got {port}")
    return port


def address_text(host: str, port: int) -> str:
    """`HOST:PORT`, as it stands in a link and as a server listens on it; IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def dial_target(host: str, port: int) -> str:
    """What a gRPC channel is made for. With its scheme: a host that is called `unix` or `dns` would be read as one."""
    return f"dns:///{address_text(host, port)}"


def reached_at(listening: str) -> tuple[str, ...]:
    """Where the same machine reaches a server that listens on this canonical host; the likeliest first."""
    if listening not in WILDCARDS:
        return (listening,)
    # A wildcard listens on both families where the system has both; which one it got, only dialling tells.
    return ("::1", "127.0.0.1") if listening == "::" else ("127.0.0.1", "::1")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _ipv6(text: str, bare: str) -> str:
    if "%" in bare:
        raise _not_a_host(
            text, "what follows the % names an interface of one machine and means nothing on another; leave it out"
        )
    try:
        address = ipaddress.IPv6Address(bare)
    except ValueError:
        raise _not_a_host(text, "a name has no colons, and it is no IPv6 address either") from None
    return str(address.ipv4_mapped or address)


def _ipv4(text: str, name: str) -> str:
    try:
        return str(ipaddress.IPv4Address(name))
    except ValueError:
        raise _not_a_host(
            text, "what ends in a number is read as an IPv4 address: four numbers of 0 to 255 without leading zeros"
        ) from None


def _ascii_name(text: str, bare: str) -> str:
    """`bare` in lower-case ASCII: labels of other alphabets as `xn--...`."""
    if bare.isascii():
        return bare.lower()
    import idna  # here, where it is needed: its tables take a while

    try:
        mapped = idna.uts46_remap(bare, std3_rules=False, transitional=False)
        return ".".join(label if label.isascii() else idna.alabel(label).decode("ascii") for label in mapped.split("."))
    except UnicodeError:
        raise _not_a_host(text, "it has characters that no internet name may have") from None


def _check_name(text: str, name: str, labels: list[str]) -> None:
    if len(name) > MAX_NAME_CHARACTERS:
        raise _not_a_host(text, f"a name has at most {MAX_NAME_CHARACTERS} characters, got {len(name)}")
    for label in labels:
        if len(label) > MAX_LABEL_CHARACTERS:
            raise _not_a_host(
                text, f"between two dots stand at most {MAX_LABEL_CHARACTERS} characters, got {len(label)}"
            )
        if not label:
            raise _not_a_host(text, "nothing stands between two dots, or before the first")
        if not _LABEL.fullmatch(label):
            raise _not_a_host(
                text, "a name has letters, digits, - and _ between dots and nothing else: no scheme, path or blanks"
            )


def _not_a_host(text: str, why: str) -> ConfigError:
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return ConfigError(f"{shown!r} is not a host name or address: {why}")

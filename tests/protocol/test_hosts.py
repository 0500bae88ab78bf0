"""Hosts: one form for each, and no surprise about which machine it is."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ConfigError
from protocol.hosts import address_text, canonical_host, dial_target, dialable_host, reached_at, split_port


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("coordinator.example.org", "coordinator.example.org"),
        ("Coordinator.Example.ORG.", "coordinator.example.org"),
        ("localhost", "localhost"),
        ("my_service", "my_service"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("straße.example", "xn--strae-oqa.example"),  # not strasse.example, which may be somebody else's
        ("日本語。例え", "xn--wgv71a119e.xn--r8jz45g"),
        ("büro_nord.my_net", None),
        ("192.0.2.7", "192.0.2.7"),
        ("１９２.0.2.7", "192.0.2.7"),
        ("2001:db8::5", "2001:db8::5"),
        ("[2001:db8::5]", "2001:db8::5"),
        ("2001:DB8:0:0:0:0:0:5", "2001:db8::5"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::", "::"),
        ("0.0.0.0", "0.0.0.0"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
        (".".join(["a" * 49] * 5) + "." + "b" * 3, ".".join(["a" * 49] * 5) + "." + "b" * 3),
    ],
)
def test_each_host_has_one_form(text: str, canonical: str | None) -> None:
    if canonical is None:
        with pytest.raises(ConfigError, match="no internet name"):
            canonical_host(text)
    else:
        assert canonical_host(text) == canonical
        assert canonical_host(canonical) == canonical


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        ("[]", "only an IPv6 address stands in brackets"),
        ("[example.org]", "only an IPv6 address stands in brackets"),
        (".", "nothing stands between two dots"),
        ("a..b", "nothing stands between two dots"),
        (".a", "nothing stands between two dots"),
        ("fe80::1%eth0", "names an interface of one machine"),
        ("[fe80::1%25eth0]", "names an interface of one machine"),
        ("2001:db8::g", "a name has no colons"),
        ("127.1", "four numbers of 0 to 255"),
        ("0177.0.0.1", "four numbers of 0 to 255"),
        ("2130706433", "four numbers of 0 to 255"),
        ("0x7f000001", "four numbers of 0 to 255"),
        ("1.2.3.256", "four numbers of 0 to 255"),
        ("example.123", "four numbers of 0 to 255"),
        ("http://example.org", "a name has no colons"),
        ("example.org/path", "no scheme, path or blanks"),
        ("me@example.org", "no scheme, path or blanks"),
        ("exam ple.org", "no scheme, path or blanks"),
        ("-a.example", "no scheme, path or blanks"),
        ("a-.example", "no scheme, path or blanks"),
        ("☃.example", "characters that no internet name may have"),
        ("a" * 64 + ".example", "at most 63 characters, got 64"),
        ("ü" * 60 + ".example", "characters that no internet name may have|at most 63 characters"),
        ("a." * 126 + "ab", "at most 253 characters, got 254"),
    ],
)
def test_what_is_no_host_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"is not a host name or address: .*({why})"):
        canonical_host(text)


@pytest.mark.parametrize(
    "text", ["0.0.0.0", "::", "[::]", "::ffff:0.0.0.0", "224.0.0.1", "ff02::1", "255.255.255.255", "fe80::1"]
)
def test_what_nobody_can_dial_is_listened_on_at_most(text: str) -> None:
    canonical_host(text)
    with pytest.raises(ConfigError, match="dial"):
        dialable_host(text)


@given(st.text(max_size=300))
def test_any_text_is_a_host_in_its_one_form_or_a_sentence(text: str) -> None:
    try:
        host = canonical_host(text)
    except ConfigError as error:
        host, sentence = "localhost", str(error)
    else:
        sentence = ""
    assert len(sentence) < 600
    assert host.isascii()
    assert host == host.lower()
    assert canonical_host(host) == host


@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_address_stands_with_its_port(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    host = canonical_host(str(address))
    written = address_text(host, port)
    split, split_off = split_port(written)
    assert (canonical_host(split), split_off) == (host, port)
    assert dial_target(host, port) == f"dns:///{written}"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("example.org", ("example.org", None)),
        ("example.org:7600", ("example.org", 7600)),
        ("[2001:db8::5]", ("[2001:db8::5]", None)),
        ("[2001:db8::5]:7600", ("[2001:db8::5]", 7600)),
        ("2001:db8::5", ("2001:db8::5", None)),
    ],
)
def test_a_port_is_told_from_an_address(text: str, parts: tuple[str, int | None]) -> None:
    assert split_port(text) == parts


@pytest.mark.parametrize("text", ["a:", "a:http", "a:-1", "a:0", "a:65536", "[::1]:", "[::1]7600", "[::1", "a:٧"])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        canonical_host(split_port(text)[0])


def test_a_wildcard_is_reached_over_loopback_of_its_own_family_first() -> None:
    assert reached_at("0.0.0.0")[0] == "127.0.0.1"
    assert reached_at("::")[0] == "::1"
    assert reached_at("192.0.2.7") == ("192.0.2.7",)
    assert reached_at("somewhere") == ("somewhere",)

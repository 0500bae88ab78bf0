import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import ConfigError
from protocol.joinlink import Bootstrap, JoinLink

_FINGERPRINT = "0123456789abcdef" * 4
_INVITE = "Ab-_" * 6
_TAIL = f"#{_FINGERPRINT}.{_INVITE}"

_LABEL = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
_HOSTS = st.one_of(
    st.lists(_LABEL, min_size=1, max_size=4).map(".".join),
    st.ip_addresses(v=4, network="192.0.2.0/24").map(str),
    st.ip_addresses(v=6, network="2001:db8::/32").map(str),
)


@given(
    host=_HOSTS,
    port=st.integers(1, 65535),
    fingerprint=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    invite=st.from_regex(r"[A-Za-z0-9_-]{16,128}", fullmatch=True),
)
def test_what_is_printed_parses_back(host: str, port: int, fingerprint: str, invite: str) -> None:
    link = JoinLink(host=host, port=port, fingerprint=fingerprint, invite=invite)
    assert JoinLink.parse(str(link)) == link


_PEER = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"


@given(
    places=st.lists(st.tuples(_HOSTS, st.integers(1, 65535)), min_size=1, max_size=4),
    through=st.lists(st.tuples(_HOSTS, st.integers(1, 65535)), max_size=4),
)
@settings(max_examples=30)
def test_a_link_with_several_addresses_and_peers_parses_back(
    places: list[tuple[str, int]], through: list[tuple[str, int]]
) -> None:
    (host, port), *others = places
    peers = tuple(Bootstrap(peer_id=_PEER, host=one, port=number) for one, number in through)
    link = JoinLink(host=host, port=port, fingerprint=_FINGERPRINT, invite=_INVITE, others=tuple(others), through=peers)
    assert JoinLink.parse(str(link)) == link


def test_the_documented_form_with_several_addresses() -> None:
    text = f"barnraise://a.example:1,[2001:db8::1]:2/?through={_PEER}@b.example:3{_TAIL}"
    link = JoinLink.parse(text)
    assert (link.host, link.port, link.others) == ("a.example", 1, (("2001:db8::1", 2),))
    assert link.through == (Bootstrap(peer_id=_PEER, host="b.example", port=3),)
    assert str(link) == text


@pytest.mark.parametrize(
    "address",
    [
        "h:1,", ",h:1", "h:1,h", "h:1,h:0", "h:1,h:2,h:3,h:4,h:5", "h:1/?through=x@h:1",
        f"h:1/?through={_PEER}", f"h:1/?through={_PEER}@h", f"h:1/?through={_PEER}@0.0.0.0:1",
        "h:1/?through=" + ",".join([f"{_PEER}@h:1"] * 5), "h:1/?other=1",
    ],
)  # fmt: skip
def test_a_list_of_addresses_or_peers_that_is_none_is_refused_in_words(address: str) -> None:
    with pytest.raises(ConfigError, match="join link"):
        JoinLink.parse(f"barnraise://{address}{_TAIL}")


@given(text=st.text(max_size=200))
def test_any_text_is_a_link_or_a_config_error(text: str) -> None:
    for candidate in (text, "barnraise://" + text, f"barnraise://{text}/{_TAIL}", f"barnraise://h:1/#{text}"):
        try:
            link = JoinLink.parse(candidate)
        except ConfigError:
            continue
        assert JoinLink.parse(str(link)) == link


def test_the_documented_form() -> None:
    link = JoinLink.parse(f"barnraise://train.example.org:7070/{_TAIL}")
    assert (link.host, link.port, link.fingerprint, link.invite) == ("train.example.org", 7070, _FINGERPRINT, _INVITE)
    assert link.address == "train.example.org:7070"


def test_ipv6_stands_in_brackets() -> None:
    link = JoinLink.parse(f"barnraise://[2001:db8::1]:7070/{_TAIL}")
    assert link.host == "2001:db8::1"
    assert link.address == "[2001:db8::1]:7070"
    assert str(link) == f"barnraise://[2001:db8::1]:7070/{_TAIL}"


@pytest.mark.parametrize("host", ["unix", "dns", "ipv4", "xds"])
def test_a_host_that_is_called_like_a_scheme_of_grpc_is_dialled_as_a_host(host: str) -> None:
    link = JoinLink.parse(f"barnraise://{host}:7070/{_TAIL}")
    assert link.target == f"dns:///{host}:7070"


def test_a_host_has_one_form() -> None:
    link = JoinLink.parse(f"barnraise://Train.Example.ORG.:7070/{_TAIL}")
    assert link == JoinLink.parse(f"barnraise://train.example.org:7070/{_TAIL}")
    assert JoinLink.parse(f"barnraise://[2001:DB8:0::5]:1/{_TAIL}").host == "2001:db8::5"


def test_pasting_is_forgiven() -> None:
    link = JoinLink.parse(f"  BARNRAISE://h:1#{_FINGERPRINT.upper()}.{_INVITE}\r\n")
    assert link == JoinLink(host="h", port=1, fingerprint=_FINGERPRINT, invite=_INVITE)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must start with barnraise://"),
        (f"https://h:1/{_TAIL}", "must start with barnraise://"),
        ("barnraise://h:1/", "nothing follows a #"),
        (f"barnraise://h:1/#{_FINGERPRINT}", r"no \. between fingerprint and invite"),
        (f"barnraise://h/{_TAIL}", "has no port"),
        (f"barnraise://[::1]/{_TAIL}", "has no port"),
        (f"barnraise://h:/{_TAIL}", "is not a port"),
        (f"barnraise://h:http/{_TAIL}", "is not a port"),
        (f"barnraise://h:-1/{_TAIL}", "is not a port"),
        (f"barnraise://h:0/{_TAIL}", "port must be 1 to 65535, got 0"),
        (f"barnraise://h:65536/{_TAIL}", "port must be 1 to 65535, got 65536"),
        (f"barnraise://h:99999999999999/{_TAIL}", "is not a port"),
        (f"barnraise://:1/{_TAIL}", "not a host name"),
        (f"barnraise://user@h:1/{_TAIL}", "not a host name"),
        (f"barnraise://h/path:1/{_TAIL}", "not a host name"),
        (f"barnraise://-h:1/{_TAIL}", "not a host name"),
        (f"barnraise://127.1:1/{_TAIL}", "four numbers"),
        (f"barnraise://0.0.0.0:1/{_TAIL}", "nobody can dial"),
        (f"barnraise://[::]:1/{_TAIL}", "nobody can dial"),
        (f"barnraise://[fe80::1]:1/{_TAIL}", "link-local"),
        (f"barnraise://[2001:db8::5]x:1/{_TAIL}", "after ]"),
        (f"barnraise://{'a' * 64}:1/{_TAIL}", "not a host name"),
        (f"barnraise://{'a.' * 130}:1/{_TAIL}", "not a host name"),
        (f"barnraise://::1:1/{_TAIL}", "stands in brackets, as in"),
        (f"barnraise://[h]:1/{_TAIL}", "only an IPv6 address"),
        (f"barnraise://[::g]:1/{_TAIL}", "not a host name"),
        (f"barnraise://[fe80::1%eth0]:1/{_TAIL}", "not a host name"),
        (f"barnraise://h:1/#abc.{_INVITE}", "64 hexadecimal digits, got 3"),
        (f"barnraise://h:1/#{'g' * 64}.{_INVITE}", "64 hexadecimal digits"),
        (f"barnraise://h:1/#{_FINGERPRINT}.short", "got 5 characters: was the link cut off"),
        (f"barnraise://h:1/#{_FINGERPRINT}.{_INVITE}!", "letters, digits"),
        (f"barnraise://h:1/{_TAIL}{'x' * 2000}", "too many"),
        (f"barnraise://h:1/{_TAIL}\x00", "control"),
        (f"barnraise://h\n:1/{_TAIL}", "control"),
        (f"barnraise://h\t:1/{_TAIL}", "control"),
        (f"barnraise://h\x1b[31m:1/{_TAIL}", "control"),
        (f"barnraise://h :1/{_TAIL}", "blanks"),
        (f"barnraise://hé:1/{_TAIL}", "non-ASCII"),
        (f"barnraise://h:١/{_TAIL}", "non-ASCII"),  # a digit that int() takes
    ],
)
def test_each_wrong_part_is_named(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        JoinLink.parse(text)


def test_the_invite_is_not_in_repr() -> None:
    assert _INVITE not in repr(JoinLink(host="h", port=1, fingerprint=_FINGERPRINT, invite=_INVITE))

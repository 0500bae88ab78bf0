"""A signed call holds for exactly one session, counter, request id, method, body and audience."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from protocol.canonical import length_prefixed
from protocol.errors import Unauthenticated
from protocol.identity import PrivateIdentity
from protocol.signing import (
    COUNTER_KEY,
    COUNTER_WINDOW,
    REQUEST_KEY,
    SESSION_KEY,
    SIGNATURE_KEY,
    CallSigner,
    CounterWindow,
    SignedCall,
    new_request_id,
    parse_metadata,
    verify_call,
)

_IDENTITY = PrivateIdentity.from_seed(bytes(32))
_SESSION = bytes(range(16))
_METHOD = "/barnraise.protocol.v1.Coordinator/Heartbeat"


def _signed(body: bytes = b"body", *, audience: bytes = b"") -> SignedCall:
    return parse_metadata(CallSigner(_IDENTITY, _SESSION, audience=audience).metadata(_METHOD, body))


@given(body=st.binary(max_size=200), session=st.sampled_from([b"", _SESSION]), audience=st.binary(max_size=32))
def test_what_was_signed_verifies(body: bytes, session: bytes, audience: bytes) -> None:
    call = parse_metadata(CallSigner(_IDENTITY, session, audience=audience).metadata(_METHOD, body))
    verify_call(_IDENTITY.public_key, call, _METHOD, body, audience=audience)
    assert call.session_id == session
    assert call.counter == (1 if session else 0)


@pytest.mark.parametrize(
    ("changed", "method", "body", "audience"),
    [
        pytest.param({"session_id": bytes(16)}, _METHOD, b"body", b"", id="session"),
        pytest.param({"session_id": b""}, _METHOD, b"body", b"", id="no session"),
        pytest.param({"counter": 2}, _METHOD, b"body", b"", id="counter"),
        pytest.param({"request_id": bytes(16)}, _METHOD, b"body", b"", id="request id"),
        pytest.param({"signature": bytes(64)}, _METHOD, b"body", b"", id="signature"),
        pytest.param({}, "/barnraise.protocol.v1.Coordinator/ReturnLease", b"body", b"", id="method"),
        pytest.param({}, _METHOD, b"bodY", b"", id="body"),
        pytest.param({}, _METHOD, b"", b"", id="empty body"),
        pytest.param({}, _METHOD, b"body", b"another coordinator", id="audience"),
    ],
)
def test_any_changed_part_breaks_the_signature(
    changed: dict[str, object], method: str, body: bytes, audience: bytes
) -> None:
    call = _signed()
    verify_call(_IDENTITY.public_key, call, _METHOD, b"body")
    with pytest.raises(Unauthenticated):
        verify_call(_IDENTITY.public_key, replace(call, **changed), method, body, audience=audience)  # type: ignore[arg-type]


def test_another_key_does_not_verify() -> None:
    with pytest.raises(Unauthenticated):
        verify_call(PrivateIdentity.generate().public_key, _signed(), _METHOD, b"body")


def test_a_call_to_one_coordinator_is_worth_nothing_at_another() -> None:
    with pytest.raises(Unauthenticated):
        verify_call(_IDENTITY.public_key, _signed(audience=b"A"), _METHOD, b"body", audience=b"B")


def test_retries_keep_the_request_id_and_spend_new_counters() -> None:
    signer = CallSigner(_IDENTITY, _SESSION)
    request_id = new_request_id()
    calls = [parse_metadata(signer.metadata(_METHOD, b"", request_id)) for _ in range(3)]
    assert [call.counter for call in calls] == [1, 2, 3]
    assert {call.request_id for call in calls} == {request_id}


def test_request_ids_differ_unless_given() -> None:
    signer = CallSigner(_IDENTITY)
    assert (
        parse_metadata(signer.metadata(_METHOD, b"")).request_id
        != parse_metadata(signer.metadata(_METHOD, b"")).request_id
    )


_GOOD = dict(CallSigner(_IDENTITY, _SESSION).metadata(_METHOD, b""))


@pytest.mark.parametrize("key", [SESSION_KEY, COUNTER_KEY, REQUEST_KEY, SIGNATURE_KEY])
def test_parts_missing_doubled_or_of_another_size_are_refused(key: str) -> None:
    rest = [(name, value) for name, value in _GOOD.items() if name != key]
    with pytest.raises(Unauthenticated, match=f"lacks {key}"):
        parse_metadata(rest)
    with pytest.raises(Unauthenticated, match=f"{key} twice"):
        parse_metadata([*_GOOD.items(), (key, _GOOD[key])])
    for wrong in (_GOOD[key] + b"x", _GOOD[key][:-1], "text" * 4):
        with pytest.raises(Unauthenticated, match=f"{key} has"):
            parse_metadata([*rest, (key, wrong)])


def test_metadata_of_others_is_left_alone() -> None:
    assert parse_metadata([("user-agent", "x"), *_GOOD.items()]).session_id == _SESSION
    with pytest.raises(Unauthenticated, match="not signed"):
        parse_metadata(None)


@given(left=st.lists(st.binary(max_size=6), max_size=5), right=st.lists(st.binary(max_size=6), max_size=5))
def test_different_fields_never_encode_to_the_same_bytes(left: list[bytes], right: list[bytes]) -> None:
    assert (length_prefixed(b"d", *left) == length_prefixed(b"d", *right)) == (left == right)


class CounterModel(RuleBasedStateMachine):
    """The window against a set of all counters that were ever accepted."""

    def __init__(self) -> None:
        super().__init__()
        self.window = CounterWindow()
        self.accepted = {0}

    @rule(counter=st.one_of(st.integers(0, 8), st.integers(COUNTER_WINDOW - 4, 3 * COUNTER_WINDOW), st.just(2**64 - 1)))
    def offer(self, counter: int) -> None:
        wanted = counter not in self.accepted and counter > max(self.accepted) - COUNTER_WINDOW
        if wanted:
            self.window.accept(counter)
            self.accepted.add(counter)
        else:
            with pytest.raises(Unauthenticated):
                self.window.accept(counter)

    @rule(step=st.integers(-5, 2 * COUNTER_WINDOW))
    def offer_near_the_highest(self, step: int) -> None:
        self.offer(max(0, min(2**64 - 1, max(self.accepted) + step)))

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.window._used.bit_length() <= COUNTER_WINDOW


TestCounterWindow = CounterModel.TestCase


def test_counter_zero_is_never_accepted() -> None:
    with pytest.raises(Unauthenticated, match="used before"):
        CounterWindow().accept(0)


def test_the_window_edge_is_exact() -> None:
    window = CounterWindow()
    window.accept(COUNTER_WINDOW + 1)
    window.accept(2)
    with pytest.raises(Unauthenticated, match="behind"):
        window.accept(1)
    with pytest.raises(Unauthenticated, match="used before"):
        window.accept(2)

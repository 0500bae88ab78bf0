"""Guards of the coordinator's edge that ask who is calling: signatures, sessions, invites, versions, leases."""

from __future__ import annotations

from tests.guards.cuts import becomes, dropped, never, planted
from tests.guards.guard import Guard, guard

REPLAYED = "test_callers.py::test_a_replayed_call_is_refused"
REOPENED = "test_callers.py::test_a_replayed_opening_of_a_session_does_not_end_the_running_one"
WINDOW = "test_callers.py::test_a_replay_from_before_the_window_is_refused"
FORGED = "test_callers.py::test_a_forged_call_is_refused_and_costs_its_victim_nothing"
ANOTHER = "test_callers.py::test_a_signature_for_another_body_or_method_is_refused"
HOLDS_FOR = "test_callers.py::test_a_signature_holds_for_one_counter_request_and_session"
UNSIGNED = "test_callers.py::test_an_unsigned_call_is_refused_on_every_method"
FORM = "test_callers.py::test_a_signature_of_the_wrong_form_is_refused"
KEY_SIZE = "test_callers.py::test_a_key_of_the_wrong_size_is_refused"
STALE = "test_callers.py::test_a_stale_call_of_an_earlier_session_is_refused"
LONG_POLL = "test_callers.py::test_a_new_session_takes_over_the_long_poll_of_the_old"
FOREIGN = "test_callers.py::test_a_foreign_call_signed_for_another_coordinator_is_refused"
ORDERS = "test_callers.py::test_a_worker_cannot_give_the_operators_orders"
OPERATOR = "test_callers.py::test_the_operators_key_is_no_worker_and_its_sessions_are_bounded"
REUSED = "test_callers.py::test_a_reused_invite_is_refused_to_another_key"
EXPIRED = "test_callers.py::test_an_expired_or_unknown_invite_is_refused"
SIBLING = "test_siblings.py::test_a_sibling_comes_in_by_the_first_ones_signature"
SIBLING_BAN = "test_siblings.py::test_of_a_machine_that_is_shut_out_no_other_gpu_comes_in"
SIBLINGS = "test_siblings.py::test_one_signature_does_not_fill_a_run"
LEASE = "test_callers.py::test_an_unknown_or_anothers_lease_is_refused"
VERSION = "test_callers.py::test_another_protocol_version_is_told_who_must_update"
SIGNED_VERSION = "test_callers.py::test_the_version_before_is_taken_and_stands_in_the_session"

SIGNED = (
    guard("replayed", dropped("coordinator:Authenticator.session_call", "session.window.accept(...)"), REPLAYED),
    guard("replayed", never("protocol:CounterWindow.accept", "self._used >> behind & 1"), REPLAYED),
    guard("replayed", never("protocol:CounterWindow.accept", "behind >= COUNTER_WINDOW"), WINDOW),
    guard("replayed", never("coordinator:Authenticator.spend_nonce", "public_key + nonce in self._nonces"), REOPENED),
    guard("replayed", never("coordinator:Authenticator.spend_nonce", "len(nonce) != NONCE_BYTES"), REOPENED),
    guard("forged", becomes("protocol:verify",
          "Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)",
          "Ed25519PublicKey.from_public_bytes(public_key)"), FORGED, ANOTHER, HOLDS_FOR, FOREIGN),
    guard("forged", dropped("coordinator:Authenticator.session_call", "verify_call(...)"), FORGED, ANOTHER),
    guard("forged", dropped("coordinator:Authenticator.check_key", "verify_call(...)"), FOREIGN, KEY_SIZE,
          SIGNED_VERSION),
    guard("forged", dropped("coordinator:Authenticator.session_call", "session.window.accept(...)"), FORGED,
          also=(planted("coordinator:Authenticator.session_call", "session.window.accept(call.counter)",
          before="verify_call(session.public_key, call, ...)"),),
          note="the other way round, a forger spends its victim's counters"),
    guard("forged", dropped("protocol:_signed_bytes", "method.encode()"), ANOTHER),
    guard("forged", dropped("protocol:_signed_bytes", "hashlib.sha256(body).digest()"), ANOTHER,
          SIGNED_VERSION),
    guard("forged", dropped("protocol:_signed_bytes", "call.counter.to_bytes(...)"),
          f"{HOLDS_FOR}[barnraise-counter-bin]"),
    guard("forged", dropped("protocol:_signed_bytes", "call.request_id"), f"{HOLDS_FOR}[barnraise-request-bin]"),
    guard("forged", dropped("protocol:_signed_bytes", "call.session_id"), f"{HOLDS_FOR}[barnraise-session-bin]"),
    guard("forged", never("protocol:parse_metadata", "missing", says="call is not signed: metadata lacks"), UNSIGNED),
    guard("forged", never("protocol:parse_metadata", "key in found"), FORM),
    guard("forged", never("protocol:parse_metadata", "not isinstance(value, bytes) or len(value) not in _LENGTHS[key]"),
          FORM),
    guard("forged", never("coordinator:Authenticator.session_call", "not call.session_id"), FORM),
    guard("forged", never("coordinator:Authenticator.check_key", "call.session_id or call.counter"), FORM),
    guard("forged", dropped("coordinator:Endpoint.keyed.handle", "self._auth.check_key(...)"), UNSIGNED, KEY_SIZE),
    guard("forged", never("protocol:verify", "len(public_key) != PUBLIC_KEY_BYTES"), KEY_SIZE),
)  # fmt: skip

SESSION = (
    guard("stale", dropped("coordinator:SessionTable.open", "self.close(..., self._by_worker.get(worker), ...)"), STALE,
          LONG_POLL),
    guard("stale", dropped("coordinator:SessionTable.close", "self._by_id.pop(...)"), STALE),
    guard("stale", dropped("coordinator:SessionTable.close", "session.closed.set()"), LONG_POLL),
    guard("stale", never("coordinator:WorkerService._wait_for_lease", "closed.done()"), LONG_POLL),
    guard("foreign", dropped("protocol:_signed_bytes", "audience"), FOREIGN),
    guard("foreign", becomes("coordinator:Endpoint._admit", "session.is_operator != operator",
          "operator and (not session.is_operator)"), OPERATOR),
    guard("foreign", becomes("coordinator:Endpoint._admit", "session.is_operator != operator",
          "session.is_operator and (not operator)"), ORDERS),
    guard("foreign", never("coordinator:SessionTable.open", "len(self._operators) > OPERATOR_SESSIONS"), OPERATOR),
    guard("a reused invite", never("coordinator:Registry.redeem", "redeemed_by is not None"), REUSED),
    guard("a reused invite", dropped("coordinator:Registry.redeem",
          "connection.execute(..., (worker, _digest(invite)), ...)"), REUSED),
    guard("a reused invite", never("coordinator:Membership._member", "member is None"), REUSED),
    guard("a sibling that nobody signed for", dropped("coordinator:Membership._check_sibling", "check_sibling(...)"),
          SIBLING),
    guard("a sibling that nobody signed for", dropped("protocol:_sibling_statement", "audience"), SIBLING),
    guard("a sibling that nobody signed for", never("coordinator:Membership.enrol", "request.sibling_of"), SIBLING_BAN),
    guard("a sibling that nobody signed for", never("coordinator:Registry.seat_sibling", "beside[0] >= MOST_SIBLINGS"),
          SIBLINGS),
    guard("an expired or unknown invite", never("coordinator:Registry.redeem", "now_s > expires_at_s"), EXPIRED),
    guard("an expired or unknown invite", becomes("coordinator:Registry.redeem",
          "raise Unauthenticated(..., cause=Cause.INVITE_UNKNOWN)", "row = (0, now_s, None, None)"), EXPIRED),
    guard("an unknown or another's lease", dropped("coordinator:WorkerService._lease_of",
          "record.lease.worker != session.worker"), LEASE),
    guard("an unknown or another's lease", dropped("coordinator:Transfers._committed_record",
          "record.lease.worker != session.worker"), LEASE),
    guard("an unknown or another's lease", dropped("coordinator:Transfers._data_of",
          "record.lease.worker != session.worker"), LEASE),
    guard("another protocol version", never("protocol:check_version",
          "not OLDEST_VERSION <= version <= PROTOCOL_VERSION"), f"{VERSION}[0]", f"{VERSION}[3]",
          f"{VERSION}[4294967295]"),
    guard("another protocol version", dropped("coordinator:Membership.enrol", "self._check_version(...)"), VERSION),
    guard("another protocol version", dropped("coordinator:Membership.open_session", "self._check_version(...)"),
          VERSION),
    guard("another protocol version", never("protocol:check_version", "column_parts > 1 and version < CUT_SINCE"),
          "tests/protocol/test_versions.py::test_cut_columns_are_for_those_who_know_of_them"),
)  # fmt: skip

CALLERS: tuple[Guard, ...] = (*SIGNED, *SESSION)

"""Guards of the coordinator's edge that ask who is calling: signatures, sessions, invites, versions, leases."""

from __future__ import annotations

from tests.guards.guard import Guard, guard

SIGNING = "protocol/signing.py"
AUTH = "coordinator/edge/auth.py"
SESSIONS = "coordinator/edge/sessions.py"
INVITES = "coordinator/store/registry.py"
RPC = "coordinator/edge/rpc.py"
MEMBERSHIP = "coordinator/edge/membership.py"
TRANSFERS = "coordinator/edge/transfers.py"
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
LEASE = "test_callers.py::test_an_unknown_or_anothers_lease_is_refused"
VERSION = "test_callers.py::test_another_protocol_version_is_told_who_must_update"

SIGNED = (
    guard("replayed", AUTH, "        session.window.accept(call.counter)\n", "", REPLAYED),
    guard("replayed", SIGNING, "if self._used >> behind & 1:", "if False:", REPLAYED),
    guard("replayed", SIGNING, "if behind >= COUNTER_WINDOW:", "if False:", WINDOW),
    guard("replayed", AUTH, "if public_key + nonce in self._nonces:", "if False:", REOPENED),
    guard("replayed", AUTH, "if len(nonce) != NONCE_BYTES:", "if False:", REOPENED),
    guard("forged", "protocol/identity.py", ".verify(signature, message)", "", FORGED, ANOTHER, HOLDS_FOR, FOREIGN),
    guard(
        "forged", AUTH, "        verify_call(session.public_key, call, method, body, audience=self._audience)\n", "",
        FORGED, ANOTHER,
    ),
    guard(
        "forged", AUTH, "        verify_call(public_key, call, method, body, audience=self._audience)\n", "",
        FOREIGN, KEY_SIZE,
    ),
    guard(
        "forged", AUTH,
        "        verify_call(session.public_key, call, method, body, audience=self._audience)\n"
        "        session.window.accept(call.counter)\n",
        "        session.window.accept(call.counter)\n"
        "        verify_call(session.public_key, call, method, body, audience=self._audience)\n",
        FORGED, note="the other way round, a forger spends its victim's counters",
    ),
    guard("forged", SIGNING, "        method.encode(),\n", "", ANOTHER),
    guard("forged", SIGNING, "        hashlib.sha256(body).digest(),\n", "", ANOTHER),
    guard("forged", SIGNING, '        call.counter.to_bytes(COUNTER_BYTES, "big"),\n        call.request_id,\n',
          "        call.request_id,\n", f"{HOLDS_FOR}[barnraise-counter-bin]"),
    guard("forged", SIGNING, "        call.request_id,\n        method", "        method",
          f"{HOLDS_FOR}[barnraise-request-bin]"),
    guard("forged", SIGNING, "        call.session_id,\n        call.counter", "        call.counter",
          f"{HOLDS_FOR}[barnraise-session-bin]"),
    guard("forged", SIGNING, "if missing:", "if False:", UNSIGNED),
    guard("forged", SIGNING, "if key in found:", "if False:", FORM),
    guard("forged", SIGNING, "if not isinstance(value, bytes) or len(value) not in _LENGTHS[key]:", "if False:", FORM),
    guard("forged", AUTH, "if not call.session_id:", "if False:", FORM),
    guard("forged", AUTH, "if call.session_id or call.counter:", "if False:", FORM),
    guard("forged", RPC, "            self._auth.check_key(call.metadata, method, body, request.public_key)"
          "  # type: ignore[attr-defined]\n", "", UNSIGNED, KEY_SIZE),
    guard("forged", "protocol/identity.py", "if len(public_key) != PUBLIC_KEY_BYTES:", "if False:", KEY_SIZE),
)  # fmt: skip

SESSION = (
    guard("stale", SESSIONS, "            self.close(self._by_worker.get(worker))\n", "", STALE, LONG_POLL),
    guard("stale", SESSIONS, "        self._by_id.pop(session.session_id, None)\n", "", STALE),
    guard("stale", SESSIONS, "        session.closed.set()\n", "", LONG_POLL),
    guard("stale", "coordinator/edge/service.py", "if closed.done():", "if False:", LONG_POLL),
    guard("foreign", SIGNING, "        _DOMAIN,\n        audience,\n", "        _DOMAIN,\n", FOREIGN),
    guard("foreign", RPC, "if session.is_operator != operator:", "if operator and not session.is_operator:", OPERATOR),
    guard("foreign", RPC, "if session.is_operator != operator:", "if session.is_operator and not operator:", ORDERS),
    guard("foreign", SESSIONS, "if len(self._operators) > OPERATOR_SESSIONS:", "if False:", OPERATOR),
    guard("a reused invite", INVITES, "if redeemed_by is not None:", "if False:", REUSED),
    guard("a reused invite", INVITES,
          '            connection.execute("UPDATE invites SET redeemed_by = ? WHERE digest = ?",'
          " (worker, _digest(invite)))\n", "", REUSED),
    guard("a reused invite", MEMBERSHIP, "            if member is None:\n", "            if False:\n", REUSED),
    guard("an expired or unknown invite", INVITES, "if now_s > expires_at_s:", "if False:", EXPIRED),
    guard("an expired or unknown invite", INVITES, "            if row is None:\n",
          "            if row is None:\n                row = (0, now_s, None)\n            if False:\n", EXPIRED),
    guard("an unknown or another's lease", "coordinator/edge/service.py",
          " or record.lease.worker != session.worker:", ":", LEASE),
    guard("an unknown or another's lease", TRANSFERS,
          ' or record.lease.worker != session.worker:\n            raise Refused(f"lease {header',
          ':\n            raise Refused(f"lease {header', LEASE),
    guard("an unknown or another's lease", TRANSFERS,
          " or record.lease.worker != session.worker:\n            raise Refused(\n",
          ":\n            raise Refused(\n", LEASE),
    guard("another protocol version", AUTH, "if version != PROTOCOL_VERSION:", "if False:",
          f"{VERSION}[0]", f"{VERSION}[2]", f"{VERSION}[4294967295]"),
    guard("another protocol version", MEMBERSHIP,
          "        check_protocol_version(request.protocol_version)\n        columns", "        columns", VERSION),
    guard("another protocol version", MEMBERSHIP,
          "        check_protocol_version(request.protocol_version)\n        run", "        run", VERSION),
)  # fmt: skip

CALLERS: tuple[Guard, ...] = (*SIGNED, *SESSION)

"""Guards of what operators do from elsewhere and on the page: keys, roles, invites taken back, the page's door."""

from __future__ import annotations

from tests.guards.cuts import becomes, dropped, never
from tests.guards.guard import Guard, guard

TICKET = "test_door.py::test_a_ticket_logs_in_once_and_looking_at_it_spends_nothing"
OLD = "test_door.py::test_a_ticket_is_too_old_after_a_minute"
COOKIE = "test_door.py::test_the_cookie_is_for_https_alone_there_and_for_nobody_else_anywhere"
OPEN = "test_door.py::test_nobody_logs_in_where_others_can_read_along"
ORIGIN = "test_door.py::test_a_form_from_elsewhere_does_nothing"
NAME = "test_door.py::test_under_another_name_nothing_is_answered"
TOKEN = "test_door.py::test_a_form_without_the_visits_token_does_nothing"
FORGED = "test_door.py::test_a_forged_or_foreign_cookie_does_nothing"
PASSWORDS = "test_door.py::test_passwords_are_tried_seldom_and_tickets_work_meanwhile"
ENDS = "test_door.py::test_a_visit_ends_by_itself_by_logging_out_and_with_its_key"
PASSWORD_ENDS = "test_door.py::test_a_visit_by_password_ends_with_that_password"
FAST = "test_door.py::test_acts_come_only_so_fast"
FORM = "test_door.py::test_what_is_no_form_of_ours_is_refused"
FRAMES = "test_door.py::test_the_door_frames_and_loads_nothing_and_is_in_no_cache"
MANY = "test_door.py::test_of_tickets_and_visits_there_are_never_many"
VIEWER = "test_operators.py::test_a_viewer_looks_and_orders_nothing"
KEYS_END = "test_operators.py::test_a_keys_sessions_end_with_it"
REVOKED = "test_operators.py::test_an_invite_that_was_taken_back_is_refused"

DOOR: tuple[Guard, ...] = (
    guard("a viewer's order", never("coordinator:carried_out", "call.orders and not who.may_order"), VIEWER),
    guard("a revoked key", dropped("coordinator:KeyKeeper._end", "self._run.sessions.close_operators(...)"), KEYS_END),
    guard("a revoked invite", never("coordinator:Registry.redeem", "revoked"), REVOKED),
    guard("a used ticket", becomes("coordinator:Access.redeem", "self._tickets.pop(_digest(ticket), None)",
          "self._tickets.get(_digest(ticket), None)"), TICKET),
    guard("an old ticket", becomes("coordinator:Access.redeem", "found is None or self._clock() > found[1]",
          "found is None"), OLD),
    guard("an open line", becomes("coordinator:approach_of",
          "request.client is None or not _is_loopback(request.client.host)", "request.client is None"), OPEN),
    guard("an open line", never("coordinator:approach_of",
          "'forwarded' in request.headers or 'x-forwarded-for' in request.headers"), OPEN),
    guard("the cookie", never("coordinator:cookie_name", "approach is Approach.HTTPS"), COOKIE),
    guard("another origin", never("coordinator:OperatorPages._form", "not is_from_our_page(request, approach)"),
          ORIGIN),
    guard("another name", becomes("coordinator:_Guarded._refusal", "is_own_host(host, self._names)", "True"), NAME),
    guard("another visit", becomes("coordinator:OperatorPages._act",
          "act is None or not visit.has_token(form.get('token', ''))", "act is None"), TOKEN, FORGED),
    guard("guessing", never("coordinator:OperatorPages._log_in", "wait_s"), PASSWORDS),
    guard("guessing", never("coordinator:OperatorPages._act", "wait_s"), FAST),
    guard("a visit without end", becomes("coordinator:Access.visit",
          "now_s - visit.seen_s > IDLE_S or now_s - visit.began_s > LONGEST_S", "now_s - visit.began_s > LONGEST_S"),
          ENDS),
    guard("a visit without end", dropped("coordinator:OperatorPages._log_out", "self._door.access.leave(...)"), ENDS),
    guard("a visit without end", never("coordinator:OperatorPages._visit",
          "visit is not None and visit.by_password not in {None, self._door.password_mark()}"), PASSWORD_ENDS),
    guard("what is no form", never("coordinator:form_of", "len(body) > MOST_FORM_BYTES"), FORM),
    guard("what is no form", never("coordinator:form_of", "len(fields) < len(pairs)"), FORM),
    guard("a frame", dropped("coordinator:DOOR_HEADERS", "'content-security-policy'"), FRAMES),
    guard("visits without number", never("coordinator:Access.begin", "len(self._visits) > MOST_VISITS"), MANY),
)  # fmt: skip

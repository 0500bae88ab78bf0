"""The operators' door on the page: who gets in, and what a form has to be before anything is done."""

from __future__ import annotations

import pytest
from starlette.types import ASGIApp

from coordinator.page.access import IDLE_S, LONGEST_S, TICKET_S, Access, Somebody
from coordinator.page.approach import MOST_FORM_BYTES
from tests.coordinator.page.doors import MARIA, PASSWORD, PAUSE, Behind, Caller, logged_in, page_before


@pytest.fixture
def behind() -> Behind:
    return Behind()


@pytest.fixture
def app(behind: Behind) -> ASGIApp:
    return page_before(behind)


@pytest.fixture
async def maria(app: ASGIApp, behind: Behind) -> Caller:
    return await logged_in(app, behind)


async def test_a_ticket_logs_in_once_and_looking_at_it_spends_nothing(app: ASGIApp, behind: Behind) -> None:
    ticket, caller = behind.access.ticket(MARIA), Caller(app)
    for _ in range(2):
        assert b"Nothing has happened yet" in (await caller.get(f"/login?ticket={ticket}")).body
    answer = await caller.log_in(ticket)
    assert (answer.status, answer.headers["location"]) == (303, "/operator")
    assert b"You are <strong>maria</strong>" in (await caller.get("/operator")).body
    other = Caller(app)
    assert (await other.log_in(ticket)).status == 403
    assert (await other.get("/operator")).headers["location"] == "/login"


async def test_a_ticket_is_too_old_after_a_minute(app: ASGIApp, behind: Behind) -> None:
    ticket = behind.access.ticket(MARIA)
    behind.now_s += TICKET_S + 1
    assert (await Caller(app).log_in(ticket)).status == 403


async def test_the_cookie_is_for_https_alone_there_and_for_nobody_else_anywhere(app: ASGIApp, behind: Behind) -> None:
    answer = await Caller(app, host="barn.example", https=True).log_in(behind.access.ticket(MARIA))
    name, _, rest = answer.headers["set-cookie"].partition("=")
    assert name == "__Host-barnraise"
    assert rest.partition(";")[2] == " Path=/; HttpOnly; SameSite=Strict; Secure"
    answer = await Caller(app).log_in(behind.access.ticket(MARIA))
    assert answer.headers["set-cookie"].startswith("barnraise-7466=")
    assert answer.headers["set-cookie"].endswith("; Path=/; HttpOnly; SameSite=Strict")


@pytest.mark.parametrize(
    ("host", "headers"),
    [
        ("barn.example", {}),
        ("192.0.2.7:7466", {}),
        ("127.0.0.1:7466", {"client": "192.0.2.9"}),
        ("barn.example", {"client": "192.0.2.9", "x_forwarded_proto": "https"}),
        ("barn.example", {"x_forwarded_proto": "http"}),
        ("127.0.0.1:7466", {"x_forwarded_for": "192.0.2.9"}),
    ],
)
async def test_nobody_logs_in_where_others_can_read_along(
    app: ASGIApp, behind: Behind, host: str, headers: dict[str, str]
) -> None:
    caller = Caller(app, host=host)
    for path in ("/login", "/operator"):
        assert (await caller.get(path, **headers)).status == 403
    for origin in (f"http://{host}", f"https://{host}"):
        answer = await caller.post("/login", {"ticket": behind.access.ticket(MARIA)}, origin=origin, **headers)
        assert (answer.status, "set-cookie" in answer.headers) == (403, False)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "https://127.0.0.1:7466", "http://127.0.0.1:80"])
async def test_a_form_from_elsewhere_does_nothing(maria: Caller, behind: Behind, origin: str) -> None:
    fields = {**PAUSE, "token": await maria.token()}
    assert (await maria.post("/operator", fields, origin=origin)).status == 403
    assert behind.ordered == []


async def test_under_another_name_nothing_is_answered(maria: Caller, behind: Behind) -> None:
    fields = {**PAUSE, "token": await maria.token()}
    answer = await maria.post("/operator", fields, host="evil.example", origin="http://evil.example")
    assert (answer.status, behind.ordered) == (421, [])


@pytest.mark.parametrize("token", ["", "forged", "ü"])
async def test_a_form_without_the_visits_token_does_nothing(maria: Caller, behind: Behind, token: str) -> None:
    assert (await maria.post("/operator", {**PAUSE, "token": token})).status == 403
    assert behind.ordered == []


async def test_a_forged_or_foreign_cookie_does_nothing(app: ASGIApp, maria: Caller, behind: Behind) -> None:
    token, true = await maria.token(), maria.cookie
    for cookie in ("", "barnraise-7466=forged", true.replace("7466", "80"), f"__Host-{true}", true[:-1]):
        maria.cookie = cookie
        assert (await maria.post("/operator", {**PAUSE, "token": token})).headers["location"] == "/login"
    ben = Caller(app)
    await ben.log_in(behind.access.ticket(Somebody(name="ben", may_order=True)))
    assert (await ben.post("/operator", {**PAUSE, "token": token})).status == 403
    assert behind.ordered == []


async def test_passwords_are_tried_seldom_and_tickets_work_meanwhile(app: ASGIApp, behind: Behind) -> None:
    caller = Caller(app)
    for _ in range(5):
        assert (await caller.post("/login", {"password": "guess"})).status == 403
    assert (await caller.post("/login", {"password": PASSWORD})).status == 429
    assert behind.passwords == ["guess"] * 5
    assert (await caller.log_in(behind.access.ticket(MARIA))).status == 303
    behind.now_s += 60
    assert (await Caller(app).post("/login", {"password": PASSWORD})).status == 303


async def test_a_visit_ends_by_itself_by_logging_out_and_with_its_key(
    app: ASGIApp, maria: Caller, behind: Behind
) -> None:
    token, cookie = await maria.token(), maria.cookie
    await maria.post("/logout", {"token": "forged"})
    assert await maria.token() == token
    await maria.post("/logout", {"token": token})
    maria.cookie = cookie
    assert (await maria.get("/operator")).headers["location"] == "/login"
    for pause_s, steps in ((IDLE_S + 1, 1), (IDLE_S - 1, int(LONGEST_S / IDLE_S) + 1)):
        await maria.log_in(behind.access.ticket(MARIA))
        await maria.token()
        for _ in range(steps):
            behind.now_s += pause_s
            answer = await maria.get("/operator")
        assert answer.headers["location"] == "/login"
    await maria.log_in(behind.access.ticket(MARIA))
    left = behind.access.ticket(MARIA)
    behind.access.end_of("maria")
    assert (await maria.get("/operator")).headers["location"] == "/login"
    assert behind.access.redeem(left) is None


@pytest.mark.parametrize("mark", ["second", ""], ids=["changed", "dropped"])
async def test_a_visit_by_password_ends_with_that_password(
    app: ASGIApp, maria: Caller, behind: Behind, mark: str
) -> None:
    caller, before = Caller(app), behind.mark
    assert (await caller.post("/login", {"password": PASSWORD})).status == 303
    fields = {**PAUSE, "token": await caller.token()}
    behind.mark = mark
    assert (await caller.post("/operator", fields)).headers["location"] == "/login"
    behind.mark = before
    assert (await caller.get("/operator")).headers["location"] == "/login"
    assert behind.ordered == []
    assert await maria.token()


async def test_acts_come_only_so_fast(maria: Caller, behind: Behind) -> None:
    fields = {**PAUSE, "token": await maria.token()}
    statuses = [(await maria.post("/operator", fields)).status for _ in range(31)]
    assert (statuses[:30], statuses[30]) == ([303] * 30, 429)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"act=pause&act=drain", "application/x-www-form-urlencoded"),
        (b"&".join(b"f%d=1" % number for number in range(40)), "application/x-www-form-urlencoded"),
        (b"why=%ff%fe", "application/x-www-form-urlencoded"),
        (b"why=" + b"x" * MOST_FORM_BYTES, "application/x-www-form-urlencoded"),
        (b'{"act": "pause"}', "application/json"),
        (b"act=pause", "text/plain"),
    ],
)
async def test_what_is_no_form_of_ours_is_refused(maria: Caller, behind: Behind, body: bytes, kind: str) -> None:
    assert (await maria.post("/operator", {}, body=body, content_type=kind)).status == 400
    assert behind.ordered == []


async def test_the_door_frames_and_loads_nothing_and_is_in_no_cache(maria: Caller) -> None:
    headers = (await maria.get("/operator")).headers
    policy = headers["content-security-policy"]
    assert "script" not in policy
    assert "form-action 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "same-origin"


def test_of_tickets_and_visits_there_are_never_many() -> None:
    access = Access(lambda: 0.0)
    first, *others = [access.ticket(MARIA) for _ in range(65)]
    assert access.redeem(first) is None
    cookies = [access.begin(MARIA) for _ in range(65)]
    assert access.visit(cookies[0]) is None
    assert access.visit(cookies[1]) is not None
    assert access.redeem(others[0]) is not None

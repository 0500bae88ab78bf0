"""What can be done on the page: each form as a call of the operator's service, and its answer as a sentence.

Decides which fields a form has; whether they make sense, the service decides, as it does for the command line. Touches
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from protocol.errors import MalformedMessage

Form = Mapping[str, str]
ServiceCall = tuple[str, dict[str, Any]]
"""A method of the operator's service, and its request as JSON."""
MOST_LINKS = 50
"""Made at a time here: they are read off a page. The command line makes a thousand."""

_HELD = {"paused": "The run is paused.", "draining": "The run is draining.", "running": "The run goes on."}
_WORKERS = {
    "ban": "banned",
    "unban": "unbanned, on probation",
    "pardon": "pardoned",
    "rollback": "a version without its work will be made",
}


@dataclass(frozen=True, slots=True)
class PageAct:
    """One thing to do."""

    call: Callable[[Form], ServiceCall]
    told: Callable[[Form, dict[str, Any]], str]
    confirm: tuple[str, str] | None = None
    """What is asked before it is done, and what that means; None: nothing is."""


def _hold(kind: str) -> PageAct:
    return PageAct(
        lambda form: ("HoldRun", {"kind": kind, "why": form.get("why", "")}),
        lambda _, reply: _HELD.get(str(reply.get("now")), "Done."),
    )


def _announce(form: Form) -> ServiceCall:
    return "Announce", {"text": form.get("text", "")}


def _standing(act: str) -> Callable[[Form], ServiceCall]:
    def call(form: Form) -> ServiceCall:
        whom, name = form.get("whom", "worker"), form.get("name", "").strip()
        if whom not in ("worker", "owner", "invite"):
            raise MalformedMessage("choose a worker, an owner or an invite")
        if not name:
            raise MalformedMessage("say who: a name, an id or the start of one")
        return "ChangeStanding", {"act": act.upper(), whom: name, "why": form.get("why", "")}

    return call


def _standing_told(form: Form, reply: dict[str, Any]) -> str:
    import json

    change = json.loads(reply["change_json"])
    whom = ", ".join(change["workers"][:5]) or form.get("name", "")
    what = _WORKERS[change["act"]] if change["changed"] else "nothing to change, it is so already"
    note = f" {change['note'][:1].upper()}{change['note'][1:]}." if change["note"] else ""
    return f"{whom}: {what}.{note}"


def _invite(form: Form) -> ServiceCall:
    return "CreateInvite", {
        "count": _number(form, "count", MOST_LINKS),
        "uses": _number(form, "uses", 10_000),
        "expires_in_s": 3600.0 * _number(form, "hours", 8784),
        "owner": form.get("owner", "").strip(),
        "trusted": form.get("trusted") == "yes",
    }


def _number(form: Form, name: str, most: int) -> int:
    text = form.get(name, "").strip()
    if not text.isascii() or not text.isdigit() or len(text) > 6 or not 1 <= int(text) <= most:
        raise MalformedMessage(f"{name}: a whole number from 1 to {most}")
    return int(text)


def _invited(_: Form, reply: dict[str, Any]) -> str:
    count = len(reply.get("join_links", ()))
    made, them = ("One join link was", "it") if count == 1 else (f"{count} join links were", "them")
    return f"{made} made. Copy {them} now: nobody can look {them} up again."


def _revoke(form: Form) -> ServiceCall:
    return "RevokeInvite", {"invite": form.get("invite", "").strip()}


def _revoked(_: Form, reply: dict[str, Any]) -> str:
    done = "nobody else comes in by it" if reply.get("changed") else "it was taken back before"
    return f"Invite {reply['invite']}: {done}. Whoever did stays; Ban shuts them out."


def _set(form: Form) -> ServiceCall:
    return "ChangeSetting", {"key": form.get("key", "").strip(), "value": form.get("value", "").strip()}


def _was_set(_: Form, reply: dict[str, Any]) -> str:
    key, before, value = reply["key"], reply["before_json"], reply["value_json"]
    if before == value:
        return f"{key} is {value} already."
    extra = "".join(f" {reply[name]}." for name in ("caution", "file_trouble") if reply.get(name))
    return f"{key} was {before} and is {value} from round {reply.get('from_round', 0)} on.{extra}"


PAGE_ACTS: Mapping[str, PageAct] = {
    "pause": _hold("PAUSE"),
    "drain": _hold("DRAIN"),
    "resume": _hold("RESUME"),
    "announce": PageAct(
        _announce, lambda form, _: "Volunteers are told." if form.get("text") else "Nothing is announced any more."
    ),
    "ban": PageAct(_standing("ban"), _standing_told),
    "unban": PageAct(_standing("unban"), _standing_told),
    "pardon": PageAct(_standing("pardon"), _standing_told),
    "rollback": PageAct(
        _standing("rollback"),
        _standing_told,
        confirm=(
            "Roll back without",
            "A version is made as if this worker had never taken part, as far back as the run can. "
            "What others sent counts again; what came of it since is undone.",
        ),
    ),
    "invite": PageAct(_invite, _invited),
    "revoke": PageAct(_revoke, _revoked),
    "set": PageAct(_set, _was_set),
}
"""By the name that a form has."""

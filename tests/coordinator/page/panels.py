"""Each panel's values, as a browser shows them and as the picture has them: to be held against each other."""

from __future__ import annotations

from typing import Any

from coordinator.page.rendering import WORKERS_ON_OVERVIEW, energy, grouped, large, loss, moment
from coordinator.page.view import RunView
from protocol.text import duration, human_bytes
from tests.coordinator.page.browser import Browser

_READ = """
(() => {
  const text = (one) => one ? one.textContent.replace(/\\s+/g, " ").trim() : "";
  const rows = (where) => [...document.querySelectorAll(where)].map((row) => [...row.children].map(text));
  return {
    headline: text(document.querySelector("#headline .sentence")),
    round: text(document.querySelector("#round p")),
    reasons: [...document.querySelectorAll("#round .reasons li")].map(text),
    leases: rows("#round details tbody tr").map((row) => row.slice(0, 4)),
    bars: document.querySelectorAll("#round svg g").length,
    loss: rows("#loss details tbody tr"),
    dots: document.querySelectorAll("#loss .by-round .dot").length,
    columns: [...document.querySelectorAll("#columns .map .cell")].map((one) => [
      one.className, text(one.querySelector("small"))]),
    counts: text(document.querySelector("#workers p")),
    workers: rows("#workers tbody tr"),
    verdicts: rows("#verdicts tbody tr").map((row) => row.slice(0, 2)),
    credit: rows("#credit tbody tr"),
    bytes: rows("#bytes tbody tr"),
    energy: text(document.querySelector("#energy p")),
    card: [...document.querySelectorAll("#card dd")].map(text),
    rounds: rows("#rounds tbody tr"),
  };
})()
"""


def shown_panels(browser: Browser) -> dict[str, Any]:
    """What stands on the page now."""
    found: dict[str, Any] = browser.run(_READ)
    return found


def panels_of(view: RunView) -> dict[str, Any]:
    """What should stand there."""
    card, current, judged, moved = view.card, view.open_round, view.judged, view.moved
    advice = f" {view.headline.advice}" if view.headline.advice else ""
    closes = f", closes in {duration(current.closes_at_s - view.at_s)} at the latest" if current.closes_at_s else ""
    more = [f"and {current.more_reasons} more"] if current.more_reasons else []
    to_go = f"; about {duration(view.left_s)} to go at the pace of the latest" if view.left_s else ""
    exported = "" if card.exported_version is None else f"; {card.exported_version} is exported"
    values: dict[str, Any] = {
        "headline": f"{view.headline.text.rstrip('.')}.{advice}",
        "round": f"Round {current.number} of {card.max_rounds}, {current.phase}, on version {current.base_version};"
        f" open for {duration(view.at_s - current.opened_at_s)}{closes}. {current.accepted} accepted,"
        f" {current.refused} refused, {current.lost} lost.",
        "reasons": [f"{one.subject} {one.text}" for one in current.reasons] + more,
        "leases": [
            [one.worker, one.state, str(one.columns), f"{one.done} of {one.steps}" if one.done else str(one.steps)]
            for one in current.leases
        ],
        "bars": len(current.leases),
        "loss": [
            [
                str(one.version), str(one.round), grouped(one.tokens), f"{one.hours:.2f}", loss(one.loss),
                loss(one.standard_error),
            ]
            for one in reversed(view.losses)
        ],
        "dots": len(view.losses) if len(view.losses) > 1 else 0,
        "columns": [[f"cell {one.health}", f"{one.accepted}/{one.leased}"] for one in view.columns[:512]],
        "workers": [
            [
                one.name, one.state, one.why, one.standing, str(one.columns or "–"), str(one.accepted),
                str(one.refused), str(one.lost), grouped(one.tokens_per_s) if one.tokens_per_s else "–",
            ]
            for one in view.workers[:WORKERS_ON_OVERVIEW]
        ],
        "verdicts": [
            ["accepted", grouped(judged.accepted)],
            *([f"refused: {key.replace('_', ' ')}", grouped(count)] for key, count in judged.refused.items()),
        ]
        if judged.accepted or judged.refused
        else [],
        "credit": [
            [str(place), one.name, *([one.team or "–"] if any(other.team for other in view.credit) else []),
             grouped(one.tokens), grouped(one.accepted)]
            for place, one in enumerate(view.credit[:10], start=1)
        ],
        "bytes": [
            ["from workers", human_bytes(moved.received_bytes), f"{human_bytes(moved.received_bytes_per_s)}/s"],
            ["to workers", human_bytes(moved.sent_bytes), f"{human_bytes(moved.sent_bytes_per_s)}/s"],
        ],
        "energy": f"About {energy(view.energy.kwh)} for training: {duration(3600 * view.energy.machine_hours)} of one"
        f" machine, at {grouped(view.energy.watts_assumed)} W assumed for each."
        if view.energy.machine_hours
        else "Nothing has been trained yet.",
        "card": [
            f"{card.model}, {large(card.parameters)} parameters",
            f"{card.columns} columns, {card.top_k} a token; {card.residency} where not held",
            f"{card.data}, {card.sequence_length} tokens a sequence",
            f"{card.max_rounds} planned, {view.rounds_closed} closed{to_go}",
            f"{card.replicas} replicas, quorum {card.quorum}",
            f"{card.rule.replace('_', ' ')}, sent as {card.codec}",
            "anybody with a link" if card.open_run else "people who were invited",
            f"{card.version}{exported}",
            moment(card.started_at_s),
            f"{card.run_id}, Barnraise {card.release}",
        ],
        "rounds": [
            [
                str(one.number), "none" if one.version is None else str(one.version), duration(one.lasted_s),
                str(one.accepted), str(one.refused), str(one.lost), grouped(one.tokens), loss(one.loss), one.why,
            ]
            for one in list(reversed(view.closed))[:12]
        ],
    }  # fmt: skip
    said = {"measuring": "checking", "quarantined": "set aside"}
    states = " ".join(f"{grouped(count)} {said.get(state, state)}" for state, count in view.worker_states.items())
    people = f"{grouped(view.enrolled)} enrolled, {grouped(view.connected)} connected"
    values["counts"] = f"{people}: {states}" if states else people
    plain: dict[str, Any] = _with_plain_blanks(values)
    return plain


def _with_plain_blanks(value: Any) -> Any:
    """A browser's \\s takes in the thin spaces between thousands."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, list):
        return [_with_plain_blanks(one) for one in value]
    return {key: _with_plain_blanks(one) for key, one in value.items()} if isinstance(value, dict) else value

"""A line of a coordinator's log as a sentence.

Decides words. A line whose event has none here is told as it stands, so that a new one is never lost. Touches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from protocol.text import printable

_KNOWN_APART = ("event", "level", "timestamp", "exception")

SENTENCES: Mapping[str, str] = {
    "coordinator_started": "the coordinator started in round {round} and listens on port {port}",
    "coordinator_stopped": "the coordinator stopped",
    "page_shown": "the run's page is at {url}",
    "page_failed": "a page could not be shown ({path}): {error}",
    "page_ended": "the page is not shown any more: {error}",
    "page_not_made": "the page could not be brought up to date: {error}",
    "page_login": "{who} logged in on the page",
    "page_login_refused": "a login on the page was refused: {reason}",
    "page_logout": "{who} logged out of the page",
    "worker_enrolled": "{worker} joined, for at most {max_columns} columns",
    "worker_left": "{worker} left",
    "worker_silent": "{worker} has not been heard of for too long",
    "worker_shut_out": "{worker} was shut out: {reason}",
    "worker_banned": "{worker} was banned by {by}: {why}",
    "worker_unbanned": "{worker} may come back, says {by}: {why}",
    "worker_pardoned": "{worker} was pardoned by {by}: {why}",
    "owner_banned": "all machines of {owner} were banned by {by}: {why}",
    "owner_unbanned": "the machines of {owner} may come back, says {by}: {why}",
    "invite_banned": "whoever came by invite {invite} was banned by {by}: {why}",
    "invite_unbanned": "invite {invite} counts again, says {by}: {why}",
    "lease_granted": "{worker} got lease {lease_id}: {inner_steps} steps",
    "lease_returned": "{worker} handed lease {lease_id} back: {reason}",
    "lease_cancelled": "lease {lease_id} was ended: {reason}",
    "verdict": "{outcome}: {lease_id}, {reason}",
    "round_aggregated": "round {round} became version {version}, a step of length {update_norm_l2}",
    "version_validated": "version {version} has a held-out loss of {val_loss} (standard error {val_loss_se})",
    "version_rebuilt": "version {version} was made anew without somebody's work",
    "checkpoint_written": "version {version} was exported",
    "harmful_found": "round {round}: taken out as harmful: {harmful}",
    "contribution_left_out": "round {round} goes on without {lease_id}: {error}",
    "rule_fell_back": "round {round}: {blocks} blocks could not be made by the run's rule. {told}",
    "rule_in_force_again": "round {round}: all blocks are made by the run's rule again",
    "rollback_ordered": "what {worker} did is to be taken back, says {by}: {why}",
    "setting_changed": "{key} is {value} from now on",
    "run_stopped": "the run is to end: {reason}",
    "run_over": "the run is over: {reason}",
    "audit_asked": "{worker} asks that {lease_id} be computed again",
    "clock_stepped": "this machine's clock was moved by {step_s} s; the run's own time goes on as it was",
    "command_failed": "work failed and is tried again ({command_id}{command}): {error}",
    "not_measured": "{worker} did not measure {item}: {reason}",
    "share_reached": "{worker} gives blocks to others, at port {port}",
    "share_unreached": "{worker} offered blocks at port {port}, where nobody could be reached",
    "archive_held": "{worker} says that it keeps version {version} whole",
    "record_not_made": "where the run is could not be written down for others: {reason}",
    "sharers_told": "{told} of {of} workers that share were told where the run is now",
    "p2p_ready": "the run's node {node} is in its peer-to-peer network, with {peers} others",
    "p2p_ended": "the peer-to-peer network's process ended ({reason}); it is started again",
    "follower_attached": "follower {follower} is here, from record {position} on",
    "follower_detached": "follower {follower} is gone",
    "follower_not_held": "what the follower still needs could not be held for it, so it begins anew: {error}",
    "leader_not_followed": "the coordinator cannot be followed: {reason}",
    "seat_kept": "this machine {role} the run in epoch {epoch}, {mode}",
    "seat_not_kept": "this machine's part in the run cannot be written down, which is tried again: {reason}",
    "witness_silent": "the witness does not answer: {reason}",
    "promoted": "this machine leads the run in epoch {epoch}",
    "not_promoted": "this machine could not take over: {reason}",
    "fenced": "another machine leads the run: {reason}",
    "addresses_forgotten": "{count} old addresses were forgotten",
    "addresses_not_forgotten": "old addresses could not be forgotten yet: {reason}",
    "audits_not_by_coordinator": "this coordinator computes no lease again: {reason}",
    "call_refused": "a call was refused ({method}): {error}",
    "call_failed": "a call failed here ({method}); the log file has why",
    "upload_stalled": "uploads cannot be stored: {error}",
    "settings_file_not_written": "settings.toml could not be written: {reason}",
    "heartbeat_ignored": "a sign of life of {worker} made no sense: {error}",
    "pump_failed": "the coordinator cannot go on: {error}",
    "journal_stalled": "nothing can be recorded, so nothing goes on: {reason}",
    "journal_goes_on": "recording goes on; before: {after}",
    "event_refused": "something that happened too late or too early was set aside ({event_kind}): {error}",
    "snapshot_put_off": "the journal is not shortened yet: {reason}",
    "screening_in_public": "submissions are measured on text that everybody can know: {reason}",
    "payload_missing": "a submission is gone: {reason}",
    "traffic_not_kept": "what was counted of traffic could not be kept: {reason}",
    "credit_ledger_not_written": "credit could not be written down yet: {reason}",
    "audit_log_not_written": "judgements could not be written down yet: {reason}",
}


class _Figures(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return ""


def in_words(entry: Mapping[str, Any], name_of: Callable[[str], str]) -> str:
    """What happened. `name_of` tells a worker's name by its id."""
    event = str(entry["event"])
    figures = _Figures({key: _plain(value) for key, value in entry.items()})
    if "worker" in entry:
        figures["worker"] = printable(name_of(str(entry["worker"])))
    figures["outcome"] = "accepted" if entry.get("accepted") else "refused"
    words = SENTENCES.get(event)
    if words is None:
        rest = ", ".join(f"{key} {_plain(value)}" for key, value in entry.items() if key not in _KNOWN_APART)
        return f"{printable(event)}: {rest}" if rest else printable(event)
    return words.format_map(figures).rstrip(": ")


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "nobody"
    return "" if value is None else printable(str(value))

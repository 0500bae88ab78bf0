"""Each rule with faked senses and a made-up clock: what stands against working, why, and until when."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from worker.policy import Circumstances, Permission
from worker.rules.file import PauseNote
from worker.rules.judging import BUSY_AFTER_S, FREE_AFTER_S, Felt, needed
from worker.rules.model import VolunteerRules, keys
from worker.rules.policy import RuledPolicy

NOON_S = datetime(2026, 11, 2, 12, 0, tzinfo=UTC).timestamp()
"""A Monday."""


def rules(**sections: dict[str, Any]) -> VolunteerRules:
    return VolunteerRules.checked(sections, "here")


def asked(sections: dict[str, Any], **facts: Any) -> Permission:
    policy = RuledPolicy(rules(**sections), zone=UTC)
    return policy.may_work(Circumstances(**{"wall_s": NOON_S, **facts}))


BREAKS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str, bool]] = {
    "when.schedule": (
        {"when": {"schedule": ["mon 18:00-20:00"]}},
        {},
        {"wall_s": NOON_S + 7 * 3600},
        "outside its hours, until 18:00",
        True,
    ),
    "when.idle_minutes": (
        {"when": {"idle_minutes": 10}},
        {"idle_s": 60.0},
        {"idle_s": 600.0},
        "somebody is using this machine, until 12:09",
        True,
    ),
    "when.battery": ({}, {"on_battery": True}, {"on_battery": False}, "on battery", True),
    "when.battery_least_percent": (
        {"when": {"battery": "work", "battery_least_percent": 50}},
        {"on_battery": True, "battery_percent": 0.0},
        {"on_battery": True, "battery_percent": 50.0},
        "the battery is at 0 %",
        True,
    ),
    "when.programs": (
        {"when": {"programs": ["Blender"]}},
        {"programs": frozenset({"Blender"})},
        {"programs": frozenset()},
        "Blender is running",
        True,
    ),
    "gpu.off": ({"gpu": {"off": [1]}}, {"gpu": 1}, {"gpu": 0}, "GPU 1 is switched off in the rules", True),
    "gpu.most_celsius": (
        {"gpu": {"most_celsius": 80}},
        {"gpu_celsius": 81.0},
        {"gpu_celsius": 80.0},
        "the GPU is at 81 °C, and work goes on at 72 °C",
        True,
    ),
    "cpu.most_celsius": (
        {"cpu": {"most_celsius": 90, "cool_by": 10}},
        {"cpu_celsius": 91.0},
        {"cpu_celsius": 90.0},
        "the processor is at 91 °C, and work goes on at 80 °C",
        True,
    ),
    "network.metered": (
        {"network": {"metered": "pause"}},
        {"is_metered": True},
        {"is_metered": False},
        "the connection is metered",
        False,
    ),
    "network.daily": (
        {"network": {"daily": "1GB"}},
        {"today_bytes": 1 << 30},
        {"today_bytes": (1 << 30) - 1},
        "today's 1.0 GiB of traffic are used up, until Tue 00:00",
        False,
    ),
    "network.monthly": (
        {"network": {"monthly": "1GB"}},
        {"month_bytes": 1 << 30},
        {"month_bytes": 0},
        "this month's 1.0 GiB of traffic are used up, until 1 Dec 00:00",
        False,
    ),
    "lease.licences": (
        {"lease": {"licences": ["CC0-1.0"]}},
        {"data_licence": "GPL-3.0"},
        {"data_licence": "cc0-1.0"},
        "the data of this run is under GPL-3.0, which your rules do not accept",
        True,
    ),
}


@pytest.mark.parametrize("rule", BREAKS)
def test_a_rule_pauses_with_a_reason_and_says_until_when(rule: str) -> None:
    sections, broken, kept, reason, stops = BREAKS[rule]
    answer = asked(sections, **broken)
    assert (answer.allowed, answer.reason, answer.stops_training) == (False, reason, stops)
    assert asked(sections, **kept) == Permission(allowed=True)
    assert asked({"when": {"battery": "work"}}, **broken).allowed, "it is this rule that pauses"


def test_every_rule_that_pauses_is_tried_here() -> None:
    elsewhere = {
        "when.unknown", "gpu.others_percent", "gpu.cool_by", "gpu.most_watts", "gpu.memory", "cpu.cool_by",
        "cpu.threads", "cpu.niceness", "cpu.memory", "lease.longest_hours", "disk.most", "disk.keep_free",
        "network.upload_rate", "network.download_rate", "energy.watts",
        "peers.share", "peers.port", "peers.archive", "peers.p2p", "peers.p2p_port", "peers.relay",
    }  # fmt: skip
    assert {key for key, _, _ in keys()} == set(BREAKS) | elsewhere


def test_without_rules_and_without_a_battery_it_may_always_work() -> None:
    assert asked({}) == Permission(allowed=True)
    assert RuledPolicy(VolunteerRules()).look_again_s == 1.0


def test_a_run_that_names_no_licence_is_not_accepted_and_one_not_yet_known_is_waited_for() -> None:
    accepts = {"lease": {"licences": ["CC0-1.0"]}}
    assert "has no licence that is told" in asked(accepts, data_licence="").reason
    assert asked(accepts, data_licence=None).allowed


def test_reasons_add_up_and_until_when_is_told_only_where_all_of_them_tell() -> None:
    schedule = {"when": {"schedule": ["mon 18:00-20:00"], "idle_minutes": 10}}
    answer = asked(schedule, idle_s=0.0)
    assert answer.reason == "outside its hours, until 18:00; somebody is using this machine, until 12:10"
    assert answer.until_s == NOON_S + 6 * 3600
    answer = asked(schedule, idle_s=0.0, on_battery=True)
    assert answer.until_s is None
    assert answer.reason.endswith("; on battery")


def test_what_cannot_be_known_here_counts_as_broken_unless_told_otherwise() -> None:
    idle = {"idle_minutes": 10}
    lacking = {"idle_s": "nothing tells when keyboard and mouse were used", "is_metered": "no NetworkManager"}
    answer = asked({"when": idle}, lacking=lacking)
    assert answer.reason == "a rule cannot be checked here: nothing tells when keyboard and mouse were used"
    assert asked({"when": {**idle, "unknown": "work"}}, lacking=lacking).allowed
    assert asked({}, lacking=lacking).allowed, "nobody asked for it"


def test_only_what_a_rule_looks_at_is_found_out() -> None:
    assert needed(VolunteerRules()) == {"on_battery"}
    assert needed(rules(when={"battery": "work"})) == frozenset()
    senses = {field for sections, *_ in BREAKS.values() for field in needed(rules(**sections))}
    assert senses == {"on_battery", "idle_s", "programs", "gpu_celsius", "cpu_celsius", "is_metered"}
    assert needed(rules(gpu={"others_percent": 5})) >= {"gpu_others_percent"}
    assert needed(rules(gpu={"most_watts": 200})) >= {"gpu_watts"}


def test_heat_holds_on_until_it_is_cooler() -> None:
    policy = RuledPolicy(rules(gpu={"most_celsius": 80, "cool_by": 8}))
    looks = [79.0, 80.0, 80.5, 79.0, 72.5, 72.0, 79.0, 81.0]
    allowed = [policy.may_work(Circumstances(wall_s=NOON_S, gpu_celsius=celsius)).allowed for celsius in looks]
    assert allowed == [True, True, False, False, False, True, True, False]


def test_a_gpu_counts_as_busy_and_as_free_only_after_a_while() -> None:
    policy = RuledPolicy(rules(gpu={"others_percent": 20}))

    def allowed(after_s: float, percent: float) -> bool:
        return policy.may_work(Circumstances(wall_s=NOON_S + after_s, gpu_others_percent=percent)).allowed

    assert [allowed(0, 90), allowed(1, 0), allowed(2, 90), allowed(2 + BUSY_AFTER_S, 90)] == [True, True, True, False]
    assert [allowed(10, 0), allowed(20, 90), allowed(21, 0), allowed(20 + FREE_AFTER_S, 0)] == [False] * 4
    assert allowed(21 + FREE_AFTER_S, 0)


def test_a_clock_that_is_set_back_leaves_nobody_waiting() -> None:
    felt = Felt()
    ruled = rules(gpu={"others_percent": 20})
    for wall_s in (NOON_S, NOON_S - 86400.0):
        felt = felt.after(ruled, Circumstances(wall_s=wall_s, gpu_others_percent=90.0))
    assert felt.others.is_busy


def test_what_the_volunteer_said_comes_first_and_ends_by_itself() -> None:
    policy = RuledPolicy(rules(), note=PauseNote(until_s=NOON_S + 3600), zone=UTC)
    answer = policy.may_work(Circumstances(wall_s=NOON_S, on_battery=True))
    assert answer.reason == "you paused it, until 13:00; on battery"
    assert answer.stops_training
    assert policy.may_work(Circumstances(wall_s=NOON_S + 3600)).allowed
    assert policy.note is None
    assert policy.may_work(Circumstances(wall_s=NOON_S)).allowed, "a pause that is over stays over"


def test_a_pause_without_an_end_lasts() -> None:
    policy = RuledPolicy(rules(), note=PauseNote())
    answer = policy.may_work(Circumstances(wall_s=NOON_S))
    assert (answer.reason, answer.until_s) == ("you paused it", None)


def test_finishing_asks_for_nothing_new_and_stops_nothing() -> None:
    policy = RuledPolicy(rules())
    policy.is_finishing = True
    answer = policy.may_work(Circumstances(wall_s=NOON_S))
    assert (answer.allowed, answer.stops_training) == (False, False)

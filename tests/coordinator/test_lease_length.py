"""`init` makes leases long enough for their bytes, or says why not; deadlines leave room for a whole download."""

from __future__ import annotations

import pytest

from coordinator.engine.config import EngineConfig
from coordinator.engine.down_config import DownConfig
from coordinator.engine.pacing import Pace, time_to_live_s
from coordinator.engine.rows import SpeedReport, WorkerRecord
from coordinator.engine.speeds import Speeds
from coordinator.run.lease_length import RATIO, AssumedLine, assumed_columns, step_s, traffic_of, worked_out
from coordinator.settings import RunSettings
from moe.layout import Layout, layout
from moe.presets import preset
from protocol.ids import RunId, WorkerId
from protocol.residency import FROZEN

PLENTY = 10**9


def of(name: str) -> Layout:
    return layout(preset(name), FROZEN)


def made(name: str, train_sequences: int = PLENTY, **fields: object) -> tuple[RunSettings, list[str]]:
    notes: list[str] = []
    settings = RunSettings.model_validate({"preset": name, **fields})
    return worked_out(settings, of(name), train_sequences, notes.append), notes


def test_a_small_model_keeps_the_recipe_and_nothing_is_said() -> None:
    settings, notes = made("tiny")
    assert (settings.engine, notes) == ({}, [])


def test_a_lease_computes_many_times_as_long_as_it_transfers() -> None:
    settings, (note,) = made("100m", sequence_length=1024, engine={"inner": {"batch_sequences": 2048}})
    steps = settings.engine["inner"]["inner_steps"]
    model = of("100m")
    computes_s = steps * step_s(model, 2048 * 1024)
    traffic = traffic_of(model, settings.codec, assumed_columns(model), DownConfig())
    transfers_s = traffic.transfer_s(AssumedLine.parse("20/100"))
    assert RATIO * transfers_s <= computes_s < 1.05 * RATIO * transfers_s
    assert "20/100" in note
    assert "wait" not in note
    slower, _ = made("100m", sequence_length=1024, engine={"inner": {"batch_sequences": 2048}}, line="10/50")
    assert slower.engine["inner"]["inner_steps"] == pytest.approx(2 * steps, abs=2)


@pytest.mark.parametrize("reason", ["steps were chosen", "most steps", "little data"])
def test_where_it_is_shorter_the_operator_is_told(reason: str) -> None:
    inner = {"inner_steps": 7} if reason == "steps were chosen" else {}
    sequences = 32 * 16 * 40 if reason == "little data" else PLENTY
    settings, (note,) = made("100m", sequences, engine={"inner": inner} if inner else {})
    expected = {"steps were chosen": 7, "most steps": 500, "little data": 40}
    assert settings.engine["inner"]["inner_steps"] == expected[reason]
    assert "wait for their lines" in note
    assert ("you chose" in note) == (reason == "steps were chosen")


def test_deadlines_leave_room_for_a_whole_download_on_the_assumed_line() -> None:
    settings, _ = made("olmoe-7b", sequence_length=4096)
    model = of("olmoe-7b")
    whole_s = traffic_of(model, settings.codec, assumed_columns(model), DownConfig()).whole_bytes * 8e-6 / 100
    assert settings.engine["fetch_s"] >= whole_s > 600  # 2214 with every column in fp32
    assert settings.engine["lease_ttl_s"] > settings.engine["fetch_s"]
    assert settings.engine["round_deadline_s"] > settings.engine["lease_ttl_s"]
    chosen, _ = made("olmoe-7b", sequence_length=4096, engine={"lease_ttl_s": 5000.0})
    assert chosen.engine["lease_ttl_s"] == 5000.0


def test_a_lease_has_the_download_on_top_of_what_earlier_ones_took() -> None:
    config = EngineConfig(run_id=RunId("r"), columns=1, train_sequences=10**6, fetch_s=2000.0, lease_ttl_s=9000.0)
    warm = (SpeedReport(steps=10, train_s=100.0, wall_s=110.0),)
    worker = WorkerRecord(
        worker=WorkerId("w"), name="", trusted=False, max_columns=0, tokens_per_s=0.0, heard_at_s=0.0, reports=warm
    )
    speeds = Speeds(10)
    speeds.put(None, worker)
    assert time_to_live_s(config, worker, Pace(speeds=speeds, recipe_steps=10), 10) == 3.0 * 110.0 + 2000.0

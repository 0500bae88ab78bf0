"""`init` makes leases long enough for their bytes, or says why not; deadlines leave room for a whole download."""

from __future__ import annotations

import pytest

from coordinator.engine.config import EngineConfig, InnerRecipe
from coordinator.engine.down_config import DownConfig
from coordinator.engine.history import RoundRecord
from coordinator.engine.pacing import Pace, time_to_live_s
from coordinator.engine.phases import Phase
from coordinator.engine.reasons import Case, reason
from coordinator.engine.rows import RoundState, SpeedReport, WorkerRecord
from coordinator.engine.speeds import Speeds
from coordinator.engine.state import EngineState
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.lease_length import (
    RATIO,
    AssumedLine,
    LeaseLengths,
    assumed_columns,
    step_s,
    traffic_of,
    worked_out,
)
from coordinator.settings import RunSettings
from moe.layout import Layout, layout
from moe.presets import preset
from protocol.ids import RoundNumber, RunId, Version, WorkerId, digest_of
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


def closed(number: int, opened_at_s: float) -> RoundRecord:
    return RoundRecord(
        round=RoundNumber(number), base_version=Version(0), version=Version(1), opened_at_s=opened_at_s,
        closed_at_s=opened_at_s + 1.0, accepted=1, rejected=0, expired=0, returned=0, late_used=0, update_norm_l2=None,
        val_loss=None, val_loss_se=None, closed=reason(Case.SET_ASIDE),
    )  # fmt: skip


def state_with(config: EngineConfig, trained_s: tuple[float, ...], opened_s: tuple[float, ...]) -> EngineState:
    *before_s, now_s = opened_s
    current = RoundState(round=RoundNumber(len(opened_s)), base_version=Version(0), opened_at_s=now_s)
    state = EngineState(
        engine_version=ENGINE_VERSION, config=config, now_s=now_s, phase=Phase.TRAINING, version=Version(0),
        manifest=digest_of(b"v0"), round=current,
        history=tuple(closed(number, opened_at_s) for number, opened_at_s in enumerate(before_s, start=1)),
    )  # fmt: skip
    for number, seconds in enumerate(trained_s):
        worker = WorkerRecord(
            worker=WorkerId(f"{number:064x}"), name="", trusted=False, max_columns=0, tokens_per_s=0.0, heard_at_s=0.0,
            reports=(SpeedReport(steps=10, train_s=seconds, wall_s=seconds),),
        )  # fmt: skip
        state.put_worker(worker)
    return state


def test_a_status_says_how_long_leases_are_why_and_how_much_of_the_time_workers_train() -> None:
    settings, _ = made("100m", sequence_length=1024, codec="bf16", engine={"inner": {"batch_sequences": 2048}})
    config = EngineConfig(
        run_id=RunId("r"), columns=16, train_sequences=10**9, inner=InnerRecipe(inner_steps=80, batch_sequences=2048)
    )
    lengths = LeaseLengths(settings, of("100m"))
    told = lengths.told(state_with(config, (90.0, 80.0, 60.0), (0.0, 100.0, 200.0)))
    assert told.startswith("80 inner steps of 2048 sequences a lease: about 1365 s of computing")
    assert "14.8 times the 92 s that 208.7 MiB up and 55.5 MiB down take at 20/100 Mbit/s" in told
    assert told.endswith("the median worker trained 80% of the time")
    assert lengths.told(state_with(config, (), (0.0, 100.0))) == lengths.planned(config)  # nobody trained yet
    assert lengths.told(state_with(config, (90.0,), (0.0,))) == lengths.planned(config)  # no round has closed


def test_small_models_are_said_to_keep_the_recipe() -> None:
    settings, _ = made("tiny")
    config = EngineConfig(run_id=RunId("r"), columns=8, train_sequences=10**6)
    assert "as many as the recipe has" in LeaseLengths(settings, of("tiny")).planned(config)

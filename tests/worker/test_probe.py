"""What a machine offers, and in what words."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest

from moe.layout import Layout
from protocol.errors import ConfigError
from worker.options import WorkerOptions
from worker.probe import Machine, columns_that_fit, measure_speed, micro_batch_that_fits, probe_machine
from worker.progress import JsonReporter, LiveReporter, PlainReporter, QuietReporter, make_reporter

MACHINE = Machine(device="cpu", device_name="test", memory_bytes=1 << 30, threads=1, bf16=False)


def test_what_the_volunteer_says_overrides_what_is_found() -> None:
    machine = probe_machine("cpu", memory_bytes=12345, threads=3)
    assert (machine.device, machine.memory_bytes, machine.threads) == ("cpu", 12345, 3)
    assert probe_machine("cpu").memory_bytes > 1 << 20
    assert machine.compute_dtype is None


def test_columns_follow_the_memory(frozen_layout: Layout) -> None:
    def offer(memory: int) -> int:
        return columns_that_fit(frozen_layout, dataclasses.replace(MACHINE, memory_bytes=memory), 16, None).columns

    assert offer(1 << 30) == 4
    with pytest.raises(ConfigError, match="not even 1 of 4"):
        offer(1000)


def test_an_absent_run_needs_as_many_columns_as_a_token_is_sent_to(small_layout: Layout) -> None:
    if small_layout.residency == "frozen":
        columns_that_fit(small_layout, MACHINE, 16, 1)
    else:
        with pytest.raises(ConfigError, match="at least 2"):
            columns_that_fit(small_layout, MACHINE, 16, 1)


def test_the_micro_batch_shrinks_with_the_memory(frozen_layout: Layout) -> None:
    assert micro_batch_that_fits(frozen_layout, 2, MACHINE, 16, 128) == 16
    tight = dataclasses.replace(MACHINE, memory_bytes=6 << 20)
    assert 1 <= micro_batch_that_fits(frozen_layout, 2, tight, 16, 128) < 16
    assert micro_batch_that_fits(frozen_layout, 2, dataclasses.replace(MACHINE, memory_bytes=1), 16, 128) == 1


def test_speed_is_measured_on_the_runs_own_model(frozen_layout: Layout) -> None:
    assert measure_speed(frozen_layout, MACHINE, 2, 16) > 0


@pytest.mark.parametrize("wrong", [{"device": "tpu"}, {"max_columns": 0}, {"threads": 0}, {"output": "loud"}])
def test_wrong_options_are_refused_with_the_field(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        WorkerOptions(link="", **wrong)  # type: ignore[arg-type]


def test_the_live_bar_comes_and_goes(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = LiveReporter()
    reporter.step(1, 2, 2.5, 100.0)
    reporter.say("note", "[red]as it is[/red]")
    reporter.step(2, 2, None, 100.0)
    reporter.close()
    assert "[red]as it is[/red]" in capsys.readouterr().out


def test_news_as_json_lines_and_as_plain_lines() -> None:
    stream = io.StringIO()
    JsonReporter(stream).say("lease_granted", "round 3", round=3)
    JsonReporter(stream).step(1, 10, 2.5, 100.0)
    JsonReporter(stream).step(2, 10, None, 100.0)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["lease_granted", "step"]
    assert lines[0]["round"] == 3
    plain = io.StringIO()
    reporter = make_reporter("auto", plain)
    assert isinstance(reporter, PlainReporter)
    reporter.step(1, 10, 2.5, 1234.0)
    assert "step 1 of 10, loss 2.500, 1,234 tokens/s" in plain.getvalue()
    assert isinstance(make_reporter("quiet"), QuietReporter)

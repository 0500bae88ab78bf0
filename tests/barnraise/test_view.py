"""The full-screen view: what it shows of a status, in every size, and that its keys order and never end the worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Static

from barnraise.cli.app import run
from barnraise.view.facts import loss_panel, sparkline, state_words
from barnraise.view.screen import NOBODY, VolunteerScreen

STATUS: dict[str, Any] = {
    "says": "training: step 12 of 64, loss 2.512, 812 tokens/s, about 3 min left",
    "coordinator": "127.0.0.1:7000",
    "run_name": "tiny",
    "run_id": "run-1",
    "machine": "cuda:0: A card, 8.0 GiB offered",
    "lease": {
        "lease": "r3.1", "round": 3, "step": 12, "steps": 64, "loss": 2.512, "tokens_per_s": 812.0, "left_s": 180.0,
    },
    "gauge": {"part": "GPU 0", "celsius": 61.0, "watts": 182.4, "how": "measured"},
    "energy": {"measured_kwh": 0.42, "estimated_kwh": 0.0},
    "credit": {"tokens": 12288, "rank": 2, "ranked": 5, "losses": [5.6, 5.1, 4.7, 4.4]},
    "accepted": 3,
    "rejected": 1,
    "verdicts": [
        {"lease": "r1.1", "outcome": "accepted", "text": "your work for lease r1.1 was accepted: it counts"},
        {"lease": "r2.1", "outcome": "rejected", "text": "your work for lease r2.1 was not accepted: \x1b[31mno"},
    ],
    "today_bytes": 12_000_000,
    "month_bytes": 1_200_000_000,
    "rules_trouble": "",
}  # fmt: skip
PAUSED = {**STATUS, "state": "paused", "says": "paused: on battery", "run_name": "other"}


class Worker:
    """Answers as workers do, and remembers what it was told."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers, self.told = list(answers), list[str]()

    async def __call__(self, verb: str) -> list[dict[str, Any]]:
        self.told.append(verb)
        return self.answers


def text_of(app: VolunteerScreen) -> str:
    return "\n".join(str(one.render()) for one in app.query(Static))


@pytest.mark.parametrize("size", [(80, 24), (200, 60), (40, 12)])
async def test_it_shows_state_why_lease_machine_credit_loss_and_verdicts(size: tuple[int, int]) -> None:
    app = VolunteerScreen(Worker(STATUS))
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        shown = text_of(app)
        for words in (
            "tiny, at 127.0.0.1:7000", "TRAINING", "about 3 min left", "r3.1, round 3", "12 of 64 steps",
            "812 tokens/s", "61 °C, 182 W", "0.42 kWh measured", "12,288 validated tokens, rank 2 of 5",
            "3 accepted, 1 refused", "5.600 to 4.400 over 4 versions", "was accepted: it counts",
            "barnraise worker appeal", "today", "this month",
        ):  # fmt: skip
            assert words in shown, words
        assert "\x1b" not in shown, "a coordinator's words steer no terminal"
        assert all(row.has_class("wide") == (size[0] >= 100) for row in app.query(".row"))


async def test_keys_order_and_closing_orders_nothing() -> None:
    worker = Worker(STATUS, PAUSED)
    app = VolunteerScreen(worker)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        await pilot.press("p", "r", "f")
        assert [one for one in worker.told if one != "status"] == ["pause", "resume", "finish"]
        await pilot.press("tab")
        assert "2 of 2" in text_of(app)
        assert "PAUSED" in text_of(app)
        assert "left" not in text_of(app), "nobody knows how long a lease takes that waits"
        worker.answers = []
        await app.refresh_status()
        assert NOBODY in text_of(app)
        await pilot.press("q")
    assert set(worker.told) == {"status", "pause", "resume", "finish"}
    assert app.return_code == 0


def test_a_worker_that_has_nothing_to_tell_yet_is_shown_all_the_same() -> None:
    assert state_words({"says": "waiting for work"}) == ("WAITING", "waiting for work")
    assert state_words({"says": "paused: on battery"}) == ("PAUSED", "on battery")
    assert loss_panel({}, 20).lines == ("not told yet",)


def test_the_sparkline_keeps_to_its_width_and_has_a_plain_form() -> None:
    assert sparkline([4.0, 3.0, 2.0, 1.0], 3) == "█▅▁"
    assert sparkline([1.0, 1.0], 10) == "▁▁"
    assert sparkline([1.0, 2.0], 10, plain=True).isascii()


def test_without_a_terminal_or_without_textual_it_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["worker", "view", "--home", str(tmp_path)]) == 2
    assert "`barnraise worker status` says the same in lines" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert run(["worker", "run", "--view", "--home", str(tmp_path)]) == 2
    assert "pip install 'barnraise[tui]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [], "nothing was started"

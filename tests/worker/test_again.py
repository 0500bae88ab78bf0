"""A device that is lost takes another process: the lease is kept and the worker started again, not for ever."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.causes import Cause
from tests.worker.test_session import AT, Driver
from worker import again, sentences
from worker import messages as m
from worker.again import MOST_IN_A_ROW, SOON_S, STARTED, arguments_of, go_on, times_started
from worker.options import WorkerOptions
from worker.states import State
from worker.trouble import training_trouble_of
from worker.words import say

LOST = (
    torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously…"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("HIP error: the operation cannot be performed in the present state"),
)
KEPT = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    ValueError("CUDA error: said by nobody who knows"),
)


@pytest.mark.parametrize("error", LOST)
def test_after_some_errors_the_process_can_use_the_device_no_more(error: Exception) -> None:
    trouble = training_trouble_of(error)
    assert (trouble.cause, trouble.device_lost) == (Cause.DEVICE_FAILED, True)


@pytest.mark.parametrize("error", KEPT)
def test_after_others_it_can(error: Exception) -> None:
    assert not training_trouble_of(error).device_lost


@pytest.mark.parametrize("state", [State.TRAINING, State.RESUMING])
def test_the_lease_is_not_handed_back_and_burns_no_other(state: State) -> None:
    driver: Driver = AT[state]()
    number = driver.session._training
    commands = driver.feed(m.TrainingFailed(training=number, reason="the GPU failed", device_lost=True))
    finish = next(one for one in commands if isinstance(one, m.Finish))
    assert finish.exit_code == m.EXIT_DEVICE_LOST
    assert not any(isinstance(one, m.ReturnLease) for one in commands)
    assert sentences.finished(finish, "here:1") == say("device_lost")


@pytest.mark.parametrize(
    ("before", "lived_s", "times"), [("", 1.0, 1), ("1", 1.0, 2), ("3", SOON_S, 1), ("x", 1.0, 1), ("99999", 1.0, 1)]
)
def test_starts_in_a_row_are_counted(before: str, lived_s: float, times: int) -> None:
    assert times_started({STARTED: before}, lived_s) == times


def test_what_was_asked_for_is_asked_for_again_without_the_invite(tmp_path: Path) -> None:
    options = WorkerOptions(
        link="barnraise://host:1/#secret", home=tmp_path, device="cuda:1", memory_bytes=5, measures=False
    )
    assert arguments_of(options, "host:1/#ab") == [
        "worker", "join", "host:1/#ab", "--no-measure",
        f"--home={tmp_path}", "--device=cuda:1", "--memory=5", "--output=auto",
    ]  # fmt: skip


def test_the_worker_is_started_again_three_times_in_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fingerprint = "ab" * 32
    began: list[tuple[list[str], Mapping[str, str]]] = []

    def become(command: list[str], environment: Mapping[str, str]) -> int:
        began.append((command, environment))
        return 0

    monkeypatch.setattr(again, "links_of", lambda *_: [again_link(fingerprint)])
    options = WorkerOptions(link="-")
    for number in range(MOST_IN_A_ROW):
        monkeypatch.setenv(STARTED, str(number))
        assert go_on(options, 1.0, become) == 0
    assert [environment[STARTED] for _, environment in began] == ["1", "2", "3"]
    assert began[0][0][1:6] == ["-m", "barnraise", "worker", "join", f"host:1/#{fingerprint[:12]}"]
    monkeypatch.setenv(STARTED, str(MOST_IN_A_ROW))
    assert go_on(options, 1.0, become) == m.EXIT_FAILED
    assert len(began) == MOST_IN_A_ROW
    assert "--device cpu" in capsys.readouterr().err


def again_link(fingerprint: str) -> Any:
    from protocol.joinlink import JoinLink

    return JoinLink(host="host", port=1, fingerprint=fingerprint)


def test_every_option_of_the_command_is_handed_on() -> None:
    """An option that is added to `worker join` and forgotten here would be lost at the first restart."""
    import inspect

    from barnraise.cli.worker import join

    named = {f"--{name.replace('_', '-')}" for name in inspect.signature(join).parameters}
    options = WorkerOptions(
        home=Path("h"), name="n", device="cpu", max_columns=1, memory_bytes=1, disk_bytes=1, threads=1,
        progress_bytes_a_day=1, measures=True, team="t", share_bytes_per_s=10**6, share_port=7000, first_home=Path("f"),
        p2p=True, p2p_port=7001, archive=True, be_relay=True,
    )  # fmt: skip
    handed = {one.partition("=")[0] for one in arguments_of(options, "x") if one.startswith("--")}
    assert named - {"--link", "--link-file", "--links-from", "--as-json", "--gpus"} == handed

"""Keys, receipts and appeals of a machine with several workers, a GPU each: all of them, with a real coordinator."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from barnraise.cli.app import run as run_command
from coordinator.store.credit_ledger import CreditEntry, CreditLedger, RevocationEntry
from protocol import sealed as sealing
from protocol.errors import ConfigError, Refused
from protocol.ids import LeaseId, RoundNumber
from protocol.joinlink import JoinLink
from protocol.sealed import opened, sealed
from tests.worker.conftest import MACHINE, Recorder, Swarm
from tests.worker.test_kept_receipts import CA, Book, enrolled_home
from worker import appeal as asking
from worker.appeal import Appeal, appeal
from worker.belongings import RunPlace
from worker.disk import worker_lock
from worker.home import RunHome, open_home
from worker.identity import exported, imported, keys, left, rotated
from worker.joining import Joining
from worker.options import WorkerOptions
from worker.progress import QuietReporter
from worker.receipts import ReceiptKeeper
from worker.rejoin import link_of
from worker.siblings import homes_by_gpu, homes_of, places_of, sibling_home
from worker.standing import LOG_FILE, WorkerStanding

PHRASE = "correct horse battery"
GPUS = ["", "cuda:1", "cuda:2"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses that cost nothing."""
    monkeypatch.setattr(sealing, "_N", 2**4)


async def machine(swarm: Swarm, root: Path) -> None:
    """With three workers that the coordinator knows."""
    options = WorkerOptions(link=swarm.link, home=root, measure_speed=False)
    for gpu in GPUS:
        if gpu:
            options = replace(options, link="", home=sibling_home(root, gpu), first_home=root)
        link = link_of(options.link, root)
        joining = Joining(options, link, open_home(options.home, link.fingerprint), Recorder())
        await joining.enrol(MACHINE)
        await joining.open(MACHINE)
        joining.home.remember_address(link, "barn")
        await joining.close()


async def test_all_keys_of_a_machine_go_along_are_replaced_and_are_given_up(
    swarm: Swarm, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert swarm.server is not None
    old, new = tmp_path / "old", tmp_path / "new"
    await machine(swarm, old)
    before = keys(old)
    assert [one.gpu for one in before] == GPUS
    assert len({one.public_key for one in before}) == 3
    file, found = exported(old, PHRASE)
    assert found == before
    assert imported(file, PHRASE, new) == before
    assert homes_of(new) == [new, new / "gpus" / "cuda-1", new / "gpus" / "cuda-2"]
    shutil.rmtree(new / "gpus" / "cuda-1")
    assert imported(file, PHRASE, new) == before, "again is fine"

    lock = worker_lock(places_of("", new)[1].folder / "lock")
    lock.acquire()
    outcomes = await rotated(new)
    assert [bool(one.error) for one in outcomes] == [False, True, False], "the others go on"
    assert "another worker" in outcomes[1].trouble
    after = keys(new)
    assert [one.public_key == two.public_key for one, two in zip(before, after, strict=True)] == [False, True, False]
    assert [one.key for one in outcomes] == after
    with pytest.raises(ConfigError, match="another key"):
        imported(file, PHRASE, new)

    monkeypatch.setenv("COLUMNS", "200")
    assert await asyncio.to_thread(run_command, ["worker", "identity", "revoke", "--yes", "--home", str(new)]) == 1
    told = capsys.readouterr()
    assert after[0].worker in told.out
    assert "cuda:1: another worker" in told.err
    assert [one.gpu for one in keys(new)] == ["cuda:1"]
    lock.release()
    command = ["worker", "identity", "revoke", "--yes", "--json", "--home", str(new)]
    assert await asyncio.to_thread(run_command, command) == 0, "the first has left, and it is the same command"
    told = capsys.readouterr()
    # the coordinator of this test may print, too
    (row,) = json.loads("".join(line for line in told.out.splitlines() if "[info" not in line))
    assert (row["gpu"], row["trouble"]) == ("cuda:1", "")
    assert keys(new) == []
    with pytest.raises(ConfigError, match="not enrolled"):
        await left(new, revoke=True)
    workers = swarm.server._opened().registry
    assert all(workers.find(bytes.fromhex(one.public_key)) is None for one in after)


async def test_a_file_of_before_there_were_siblings_opens_and_one_of_now_has_the_first_key_where_it_was(
    swarm: Swarm, tmp_path: Path
) -> None:
    await machine(swarm, tmp_path / "old")
    file, found = exported(tmp_path / "old", PHRASE)
    content = json.loads(opened(file, PHRASE))
    assert [one["fingerprint"] for one in content["runs"]] == [found[0].fingerprint]
    of_before = sealed(json.dumps({"runs": content["runs"]}).encode(), PHRASE)
    assert imported(of_before, PHRASE, tmp_path / "new") == [found[0]]


def test_a_folder_that_is_no_gpus_is_nobodys_home(tmp_path: Path) -> None:
    for name in ("cuda-1", "my copy", "cuda-1.bak"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    (tmp_path / "gpus" / "cuda-2").touch()
    assert homes_by_gpu(tmp_path) == {"": tmp_path, "cuda:1": tmp_path / "gpus" / "cuda-1"}


# ---- receipts and appeals, of homes that no coordinator is asked for -------------------------------------------------


@pytest.fixture
def homes(tmp_path: Path) -> dict[str, RunHome]:
    """Of three workers of one machine that are in a run."""
    made = {gpu: enrolled_home(sibling_home(tmp_path, gpu) if gpu else tmp_path) for gpu in GPUS}
    for home in made.values():
        home.remember_address(JoinLink(host="127.0.0.1", port=1, fingerprint=CA.fingerprint))
    return made


async def receive(home: RunHome, ledger: Path, rounds: list[int], revoked: list[int], name: str) -> None:
    """Receipts for leases of these rounds, some of which are taken back."""
    book = Book(CreditLedger.open(ledger), home.identity())
    worker = book.worker.worker_id
    leases = {number: LeaseId(f"{name}.{number}") for number in rounds}
    made = [CreditEntry(lease_id=leases[n], worker=worker, round=RoundNumber(n), sequences=4) for n in rounds]
    gone = [RevocationEntry(lease_id=leases[n], worker=worker, why="", wall_s=float(n)) for n in revoked]
    book.ledger.write(made, gone)
    await ReceiptKeeper(home).fetch(cast(Any, book))


async def test_receipts_of_all_gpus_are_one_sum_and_verify_together(
    homes: dict[str, RunHome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = ["worker", "receipts", "--home", str(tmp_path)]
    assert run_command(shown) == 2
    assert "no receipts yet" in capsys.readouterr().err
    await receive(homes[""], tmp_path / "ledger-0", [1, 2], [1], "a")
    await receive(homes["cuda:2"], tmp_path / "ledger-2", [2, 3, 4], [3], "b")
    assert run_command([*shown, "--json", "--out", str(tmp_path / "mine.jsonl")]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert (found["tokens"], found["leases"], found["rounds"], found["revoked"]) == (3 * 64, 3, 2, 2)
    assert [(one["gpu"], one["leases"], one["revoked"]) for one in found["gpus"]] == [("", 1, 1), ("cuda:2", 2, 1)]
    assert found["energy"] == {"measured_kwh": 0.0, "estimated_kwh": 0.0}
    files = [str(tmp_path / name) for name in ("mine.jsonl", "mine-cuda-2.jsonl")]
    assert all(one in told.err for one in files)
    assert run_command(["receipt", "verify", "--json", *files]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["earned"] == {name: found[name] for name in run["earned"]}
    assert run_command(shown) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:3]] == [["first", "64", "1", "1", "1"], ["cuda:2", "128", "2", "2", "1"]]


@pytest.mark.parametrize(
    ("lease", "asked"),
    [("", ["cuda:2"]), ("lease-0", [""]), ("lease-1", ["cuda:1"]), ("of long ago", GPUS)],
)
async def test_that_worker_asks_for_an_audit_whose_lease_was_refused(
    homes: dict[str, RunHome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lease: str, asked: list[str]
) -> None:
    now_s = iter(range(1, 100))
    monkeypatch.setattr("worker.standing.time", SimpleNamespace(time=lambda: next(now_s)))
    for number, home in enumerate(homes.values()):
        standing = WorkerStanding(QuietReporter(), home.folder / LOG_FILE)
        standing.say("submission_rejected", "it was refused", lease=f"lease-{number}")
    WorkerStanding(QuietReporter(), homes["cuda:1"].folder / LOG_FILE).say(
        "submission_accepted", "it was", lease="other"
    )
    heard: list[str] = []

    async def ask(lease_id: str, place: RunPlace, home: RunHome) -> Appeal:
        assert home.folder == place.folder == homes[place.gpu].folder
        heard.append(place.gpu)
        if place.gpu == "":
            raise Refused("this key is shut out")
        return Appeal(gpu=place.gpu, taken=place.gpu == "cuda:2", reason=f"said {place.gpu}")

    monkeypatch.setattr(asking, "_asked", ask)
    if asked == [""]:
        with pytest.raises(Refused, match="shut out"):
            await appeal(lease, run="", home=tmp_path)
    else:
        answer = await appeal(lease, run="", home=tmp_path)
        assert (answer.gpu, answer.taken) == (asked[-1], asked[-1] == "cuda:2")
    assert heard == asked


def test_a_coordinator_that_is_away_is_told_of_each_key_in_our_words(
    homes: dict[str, RunHome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["worker", "identity", "rotate", "--json", "--home", str(tmp_path)]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [one["gpu"] for one in rows] == GPUS
    assert {one["trouble"] for one in rows} == {
        "Nobody answers at 127.0.0.1:1: the coordinator is not running there just now."
    }
    assert run_command(["worker", "appeal", "--home", str(tmp_path)]) == 2
    assert "Nobody answers at 127.0.0.1:1" in capsys.readouterr().err

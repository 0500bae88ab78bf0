"""What passes screening cannot stop a run: three workers over loopback TLS, the real engine and executor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aggregation.blockwise import aggregate_block
from barnraise.cli.status import print_status
from coordinator.edge.server import CoordinatorServer
from coordinator.engine.reasons import told
from coordinator.run.folder import RunFolder
from coordinator.run.pump_limits import PumpLimits
from moe.layout import submission_specs
from protocol.codecs import codec_named
from protocol.tensors import encode_tensors
from protocol.v1 import barnraise_pb2 as pb
from tests.served import clients_of, copy_run, make_run

Join = Callable[..., Any]
MARK = 0.0078125
"""The first value of each tensor of a marked submission."""


@pytest.fixture
def pump_limits() -> PumpLimits:
    """What failed is tried again at once."""
    return PumpLimits(retry_first_s=0.0)


@pytest.fixture
def run(tmp_path: Path, text_folder: Path) -> RunFolder:
    """A round waits for three workers, and asks only for the shape of what they send."""
    engine = {"max_rounds": 2, "min_workers": 3, "gather_s": 0.0, "min_grace_s": 30.0, "screening": {"enabled": False}}
    return copy_run(make_run(tmp_path / "pristine", text_folder, engine), tmp_path / "run")


def sent(run: RunFolder, lease: pb.Lease, *, zeroed: int | None = None, marked: bool = False) -> bytes:
    tensors = {}
    for spec in submission_specs(run.layout(), lease.columns):
        noise = 1e-3 * torch.randn(spec.shape, generator=torch.Generator().manual_seed(lease.seed % 2**32))
        tensors[spec.name] = noise * 0.0 if spec.name.startswith(f"column.{zeroed}/") else noise
        if marked:
            tensors[spec.name].view(-1)[0] = MARK
    return encode_tensors(tensors, codec_named(run.settings().codec))


async def one_round(run: RunFolder, clients: list[Any], server: CoordinatorServer, **each: list[Any]) -> list[str]:
    """Every client does its lease; returns when the round is closed, with the leases in the order of the clients."""
    before = len((await server.status()).history)
    replies = await asyncio.gather(*(client.acquire(wait_s=20.0) for client in clients))
    for index, reply in enumerate(replies):
        payload = sent(run, reply.lease, **{name: values[index] for name, values in each.items()})
        await clients[index].commit(reply.lease, payload)
        assert (await clients[index].upload(reply.lease, payload)).complete
    async with asyncio.timeout(30):
        while len((await server.status()).history) == before:
            await asyncio.sleep(0.01)  # not 0: a loop that never rests keeps the executor's thread from the interpreter
    return [reply.lease.lease_id for reply in replies]


async def test_two_zeroed_columns_of_three_do_not_stop_the_run(
    run: RunFolder, server: CoordinatorServer, join: Join
) -> None:
    clients = [await join() for _ in range(3)]
    await one_round(run, clients, server, zeroed=[1, 1, None])
    await one_round(run, clients, server)
    assert [row.version for row in (await server.status()).history] == [1, 2]


async def test_a_submission_that_breaks_the_outer_step_is_left_out_and_everybody_is_told(
    run: RunFolder,
    server: CoordinatorServer,
    join: Join,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def breaks(contributions: Any, rule: str, *, seed: int | None = None) -> Any:
        if any(float(next(iter(one.tensors.values())).span(0, 1)) == MARK for one in contributions):
            raise ZeroDivisionError("0 / 0")
        return aggregate_block(contributions, rule, seed=seed)

    monkeypatch.setattr("coordinator.work.outer.aggregate_block", breaks)
    clients = [await join() for _ in range(3)]
    _, marked, _ = await one_round(run, clients, server, marked=[False, True, False])
    status = await server.status()
    (row,) = status.history
    assert (row.version, row.accepted, row.rejected) == (1, 2, 1)
    told_of_it = f"raw's {marked}: left out of round 1: aggregating it fails, even alone (trunk: 0 / 0)"
    assert status.left_out == (f"round 1: {told_of_it}",)
    assert [(one.lease_id, told(one.why)) for one in row.left_out] == [(marked, told_of_it.partition(": ")[2])]
    assert status.submissions_rejected == {"unaggregatable": 1}
    print_status(status)
    printed = capsys.readouterr().out
    assert f"round 1: {told_of_it}" in printed
    assert "had 2 submissions each, too few for trimmed_mean" in printed
    reply = await clients[1].acquire(wait_s=0.0)
    assert [verdict.outcome for verdict in reply.verdicts] == [pb.Verdict.ACCEPTED, pb.Verdict.REJECTED]
    assert "ContributionsTried" in run.events_path.read_text()
    await server.stop(0.0)
    again = CoordinatorServer(run)
    await again.start()
    assert (await again.status()).history[0].left_out == row.left_out
    async with clients_of(run, again):
        await again.stop(0.0)

"""A worker whose coordinator says whatever an input says: the real client and agent, without a network."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

import worker.fetched
import worker.joining
from moe.config import config_from_json, config_to_json
from moe.layout import Layout, layout
from moe.presets import preset
from protocol.identity import SIGNATURE_BYTES, PrivateIdentity
from protocol.ids import LeaseId, RunId, digest_of
from protocol.joinlink import JoinLink
from protocol.tls import manifest_key_message
from protocol.v1 import barnraise_pb2 as pb
from tests.fuzz.fakes import FakeChannel, FakeWire, Idle, InlineBackground, status
from tests.fuzz.target import scratch
from tests.fuzz.targets.protocol import IDENTITY, PAYLOAD, SEED, authority
from tests.worker.leases import lease_message, read_lease
from worker import messages as m
from worker.agent import Agent
from worker.client import CoordinatorClient
from worker.epochs import EPOCH_FILE
from worker.fetched import understand_run
from worker.home import Enrolment, RunHome, open_home
from worker.joining import Joining
from worker.lease import description_from_message
from worker.machine.machine import Machine
from worker.options import WorkerOptions
from worker.outbox import Submission
from worker.progress import QuietReporter

MACHINE = Machine(device="cpu", device_name="test", memory_bytes=1 << 30, threads=1, bf16=False)
STATUS_HEAD = 200
"""An input's first byte says what comes back: from here on a failed call, whose words are the rest."""


@lru_cache(maxsize=64)
def _kept_layout(model_json: str, residency: str, column_parts: int) -> Layout:
    return layout(config_from_json(json.loads(model_json)), residency, column_parts)


def _layout(config: Any, residency: str, column_parts: int = 1) -> Layout:
    return _kept_layout(json.dumps(config_to_json(config), sort_keys=True), residency, column_parts)


class Unsigned(PrivateIdentity):
    """A key whose signatures nobody checks: half of what asking costs, and no part of reading the answer."""

    def sign(self, message: bytes) -> bytes:
        """No signature."""
        return bytes(SIGNATURE_BYTES)


@contextlib.contextmanager
def cheaply() -> Iterator[None]:
    """Inside, what has nothing to do with an input is done once: 7 ms for a model's layout, 1 ms for our versions."""
    fetched: Any = worker.fetched
    joining: Any = worker.joining
    plain = fetched.layout, joining.software_versions
    fetched.layout, joining.software_versions = _layout, lambda: "test"
    try:
        yield
    finally:
        fetched.layout, joining.software_versions = plain


def description(**changes: Any) -> pb.RunDescription:
    """A run of the tiny preset."""
    fields: dict[str, Any] = {
        "run_id": "run",
        "name": "a run",
        "model_json": json.dumps(config_to_json(preset("tiny"))),
        "residency": "frozen",
        "codec": "bf16",
        "sequence_length": 16,
        "dataset_digest": "0f" * 32,
        "max_block_bytes": 1 << 20,
    }
    return pb.RunDescription(**{**fields, **changes})


class World:
    """One enrolled worker whose coordinator says whatever an input says."""

    def __init__(self) -> None:
        self.channel = FakeChannel()
        fingerprint = authority().fingerprint
        link = JoinLink(host="example.org", port=1, fingerprint=fingerprint, invite="A" * 22)
        self.home: RunHome = open_home(scratch() / "home", fingerprint)
        keep = self.home.keep

        def keep_no_epoch(name: str, content: bytes) -> None:  # or one input's would count against the next one's
            if name != EPOCH_FILE:
                keep(name, content)

        self.home.keep = keep_no_epoch  # type: ignore[method-assign]
        IDENTITY.save(self.home.folder / "identity.pem")
        submission = Submission(
            lease_id=LeaseId("r1.1"), digest=digest_of(PAYLOAD), payload_bytes=len(PAYLOAD), codec="fp32",
            inner_steps_done=5, tokens=320, train_loss_first=5.0, train_loss_last=4.0, train_s=1.0,
            micro_batch=4,
        )  # fmt: skip
        self.home.outbox.save(submission, PAYLOAD)
        options = WorkerOptions(link=str(link), measure_speed=False, name="a worker")
        wire = FakeWire(link, self.channel, authority().cert_pem)
        self.client = CoordinatorClient(link, Unsigned.from_seed(SEED), wire=wire)
        self.joining = Joining(
            options, link, self.home, QuietReporter(), dial=lambda *_: self.client, background=InlineBackground()
        )
        self.joining._client = self.client
        self.joining._enrolment = self.enrolment = Enrolment(
            worker_id=IDENTITY.worker_id,
            run_id=RunId("run"),
            ca_pem=authority().cert_pem.decode("ascii"),
            manifest_public_key_hex=IDENTITY.public_key.hex(),
            manifest_key_vouch_hex=authority().sign(manifest_key_message(RunId("run"), IDENTITY.public_key)).hex(),
            trusted=False,
        )
        self.run = understand_run(description_from_message(description()))
        self.options = options
        self.lease = read_lease(lease_message(base_version=1))

    def agent(self) -> Agent:
        """In a session, idle."""
        self.joining._run, self.joining._enrolment = self.run, self.enrolment
        agent = Agent(MACHINE, self.joining, self.home.outbox, Idle(), QuietReporter())
        agent._session.handle(m.Started(enrolled=True))
        agent._session.handle(m.Opened(ticket=1))
        return agent

    def answer(self, data: bytes) -> None:
        """The next call is answered by `data`."""
        head, rest = data[0] if data else 0, data[1:]
        self.channel.answers = [status(head - STATUS_HEAD, rest) if head >= STATUS_HEAD else rest]


@cache
def world() -> World:
    """The one."""
    return World()

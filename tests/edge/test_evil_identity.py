"""The worker's edge: a coordinator that is not who it says, or whose run is not what it says."""

from __future__ import annotations

import dataclasses
import json
import time

import grpc
import pytest

from moe.config import config_to_json
from moe.presets import preset
from protocol.joinlink import JoinLink
from tests.edge.evil_coordinator import Bend, Meeting, field

OLD = grpc.StatusCode.FAILED_PRECONDITION
EVIL_MODEL = '{"model_type": "../../evil", "auto_map": "code"}'
MORE_MODEL = json.dumps({**config_to_json(preset("tiny")), "auto_map": "code"})


async def test_a_coordinator_that_does_not_lie_is_served(meeting: Meeting) -> None:
    """Else the refusals below would prove nothing."""
    ended = await meeting.end()
    assert ended.exit_code == 0, meeting.told
    assert meeting.evil.asked.count("Upload") == 1


@pytest.mark.parametrize(
    ("call", "bend", "words"),
    [
        pytest.param("Enrol", field(worker_id="0" * 32), "not this worker's key", id="another worker"),
        pytest.param("Enrol", field(manifest_public_key=bytes(32)), "did not vouch", id="another manifest key"),
        pytest.param("Enrol", field(manifest_key_vouch=b"x"), "did not vouch", id="no vouch"),
        pytest.param("Enrol", field(run_id="another"), "did not vouch", id="vouch for another run"),
        pytest.param("Enrol", field(run_id="\x1b[31mred"), "printable", id="enrolled in control characters"),
        pytest.param("Enrol", lambda _: b"\xff\xff", "not a EnrolReply", id="no reply"),
        pytest.param("Enrol", lambda _: (OLD, "speaks protocol version 0; update"), "update", id="another version"),
        pytest.param("OpenSession", field(session_id=b""), "session id", id="no session"),
        pytest.param("OpenSession", field(session_id=bytes(17)), "session id", id="long session"),
        pytest.param("OpenSession", field(run__run_id="another"), "enrolled in", id="another run"),
        pytest.param("OpenSession", field(run__run_id="\x1b[31mred"), "sent run_id", id="run of control characters"),
        pytest.param("OpenSession", field(run__sequence_length=2**31), "sequence_length", id="sequence_length"),
        pytest.param("OpenSession", field(run__max_block_bytes=2**63), "max_block_bytes", id="max_block_bytes"),
        pytest.param("OpenSession", field(run__residency="everywhere"), "sent residency", id="residency"),
        pytest.param("OpenSession", field(run__codec="pickle"), "codec", id="codec"),
        pytest.param("OpenSession", field(run__dataset_digest="../../etc/passwd"), "dataset_digest", id="dataset"),
        pytest.param("OpenSession", field(run__model_json=EVIL_MODEL), "architecture", id="architecture"),
        pytest.param("OpenSession", field(run__model_json=MORE_MODEL), "unknown keys", id="unknown keys"),
        pytest.param("OpenSession", field(run__model_json="[" * 50_000), "JSON", id="deep JSON"),
        pytest.param("OpenSession", field(run__model_json="[7]"), "not a JSON object", id="no object"),
        pytest.param("OpenSession", field(run__model_json=" " * 70_000), "characters of model_json", id="long JSON"),
    ],
)
async def test_a_run_that_is_not_what_it_says_is_left(meeting: Meeting, call: str, bend: Bend, words: str) -> None:
    meeting.evil.bent[call] = bend
    ended = await meeting.end()
    assert ended.exit_code == 2
    assert words in ended.reason
    assert "AcquireLease" not in meeting.evil.asked


async def test_a_coordinator_that_the_join_link_does_not_name_is_left(meeting: Meeting) -> None:
    named = JoinLink.parse(meeting.evil.link)
    meeting.evil.link = str(dataclasses.replace(named, fingerprint="0" * 64))
    ended = await meeting.end()
    assert ended.exit_code == 2
    assert "is not the coordinator of this join link" in ended.reason
    assert meeting.evil.asked == []


WIDE = {"hidden_size": 1 << 16, "intermediate_size": 1 << 16, "num_attention_heads": 64, "num_key_value_heads": 64}


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        pytest.param({"num_hidden_layers": 256, "num_experts": 512, "num_experts_per_tok": 256, **WIDE},
                     "columns fit", id="all of it"),
        pytest.param({"vocab_size": 1 << 20, **WIDE}, "columns fit", id="vocabulary"),
        pytest.param({"num_hidden_layers": 10**9}, "num_hidden_layers expected 1 to 256", id="layers"),
        pytest.param({"hidden_size": 2**62}, "hidden_size expected 8 to", id="width"),
        pytest.param({"num_experts": 4096, "num_hidden_layers": 256}, "experts in all", id="experts"),
    ],
)  # fmt: skip
async def test_a_model_of_huge_shapes_costs_nothing(meeting: Meeting, sizes: dict[str, int], words: str) -> None:
    values = {**config_to_json(preset("tiny")), **sizes}
    meeting.evil.bent["OpenSession"] = field(run__model_json=json.dumps(values))
    began_s = time.process_time()
    ended = await meeting.end(within_s=60.0)
    # 256 layers take some five seconds to lay out, with no memory; to build them would take hours
    assert time.process_time() - began_s < 20.0
    assert ended.exit_code == 2
    assert words in ended.reason

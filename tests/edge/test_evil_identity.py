"""The worker's edge: a coordinator that is not who it says, or whose run is not what it says."""

from __future__ import annotations

import json

import grpc
import pytest

from moe.config import config_to_json
from moe.presets import preset
from tests.edge.evil_coordinator import Bend, Meeting, field


async def test_a_coordinator_that_does_not_lie_is_served(meeting: Meeting) -> None:
    """Else the refusals below would prove nothing."""
    ended = await meeting.end()
    assert ended.exit_code == 0, meeting.told
    assert meeting.evil.asked.count("Upload") == 1


@pytest.mark.parametrize(
    ("call", "bend", "words"),
    [
        ("Enrol", field(worker_id="0" * 32), "not this worker's key"),
        ("Enrol", field(manifest_public_key=bytes(32)), "did not vouch"),
        ("Enrol", field(manifest_key_vouch=b"x"), "did not vouch"),
        ("Enrol", field(run_id="another"), "did not vouch"),
        ("Enrol", field(run_id="\x1b[31mred"), "printable"),
        ("Enrol", lambda _: b"\xff\xff", "not a EnrolReply"),
        ("Enrol", lambda _: (grpc.StatusCode.FAILED_PRECONDITION, "speaks protocol version 0; update"), "update"),
        ("OpenSession", field(session_id=b""), "session id"),
        ("OpenSession", field(session_id=bytes(17)), "session id"),
        ("OpenSession", field(run__run_id="another"), "enrolled in"),
        ("OpenSession", field(run__sequence_length=2**31), "sequence_length"),
        ("OpenSession", field(run__max_block_bytes=2**63), "max_block_bytes"),
        ("OpenSession", field(run__residency="everywhere"), "residency"),
        ("OpenSession", field(run__codec="pickle"), "codec"),
        ("OpenSession", field(run__dataset_digest="../../etc/passwd"), "dataset_digest"),
        ("OpenSession", field(run__model_json='{"model_type": "../../evil", "auto_map": "code"}'), "architecture"),
        ("OpenSession", field(run__model_json="[" * 50_000), "JSON"),
    ],
)
async def test_a_run_that_is_not_what_it_says_is_left(meeting: Meeting, call: str, bend: Bend, words: str) -> None:
    meeting.evil.bent[call] = bend
    ended = await meeting.end()
    assert ended.exit_code == 2
    assert words in ended.reason
    assert "AcquireLease" not in meeting.evil.asked


WIDE = {"hidden_size": 1 << 16, "intermediate_size": 1 << 16, "num_attention_heads": 64, "num_key_value_heads": 64}


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_hidden_layers": 256, "num_experts": 512, "num_experts_per_tok": 256, **WIDE},
        {"vocab_size": 1 << 20, **WIDE},
        {"num_hidden_layers": 10**9},
        {"hidden_size": 2**62},
        {"num_experts": 4096, "num_hidden_layers": 256},
    ],
)
async def test_a_model_of_huge_shapes_costs_nothing(meeting: Meeting, sizes: dict[str, int]) -> None:
    values = {**config_to_json(preset("tiny")), **sizes}
    meeting.evil.bent["OpenSession"] = field(run__model_json=json.dumps(values))
    ended = await meeting.end(within_s=5.0)
    assert ended.exit_code == 2
    assert any(words in ended.reason for words in ("expected", "columns fit", "experts in all")), ended.reason

"""Values from a coordinator that is broken or hostile stop at the door."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.errors import MalformedMessage
from protocol.recipe import Recipe
from protocol.v1 import barnraise_pb2 as pb
from tests.worker.leases import lease_message, read_lease
from worker.lease import description_from_message, printable


def test_an_honest_lease_passes() -> None:
    lease = read_lease(lease_message())
    assert lease.columns == (0, 2)
    assert lease.blocks == ("trunk", "column.0", "column.2")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lease_id", ""),
        ("lease_id", "x" * 65),
        ("lease_id", "r1\x1b[31m"),
        ("columns", []),
        ("columns", [2, 0]),
        ("columns", [1, 1]),
        ("columns", [3, 4]),
        ("columns", [0, 1, 2, 3]),
        ("inner_steps", 0),
        ("inner_steps", 2**32 - 1),
        ("batch_sequences", 0),
        ("batch_sequences", 2**31),
        ("warmup_steps", 2**31),
        ("data", pb.DataRange(seed=1, start=0, count=21)),
        ("learning_rate", float("nan")),
        ("learning_rate", 0.0),
        ("learning_rate", 1e9),
        ("router_lr_scale", -1.0),
        ("weight_decay", float("inf")),
        ("adam_beta1", 1.0),
        ("adam_beta2", 1.5),
        ("adam_eps", 0.0),
        ("clip_norm", 0.0),
        ("selection_bias_rate", -1e-3),
        ("optimizer", "sgd"),
        ("masters", "fp8"),
        ("moments", "none"),
        ("frozen_dtype", "int2"),
        ("trunk", "half"),
        ("lora_rank", 1 << 20),
        ("lora_lr_scale", 0.0),
        ("muon_learning_rate", 0.0),
        ("muon_momentum", 1.0),
        ("codec", ""),
        ("codec", "zip-bomb"),
        ("residuals", ["a" * 64]),
        ("residuals", ["a" * 64, "", "../../x"]),
        ("ttl_s", -1.0),
        ("ttl_s", float("inf")),
        ("frozen", pb.FrozenColumns(codec="of tomorrow")),
        ("frozen", pb.FrozenColumns(codec="\x1b[2J")),
        ("frozen", pb.FrozenColumns(codec="bf16", version=1)),
    ],
)
def test_a_value_out_of_bounds_is_named(field: str, value: Any) -> None:
    with pytest.raises(MalformedMessage, match=field):
        read_lease(lease_message(**{field: value}))


def test_a_lease_cannot_ask_for_more_data_than_a_disk_should_take() -> None:
    steps, batch = 100_000, 65_536
    big = lease_message(inner_steps=steps, batch_sequences=batch, data=pb.DataRange(count=steps * batch))
    with pytest.raises(MalformedMessage, match="tokens"):
        read_lease(big)


def run_message(**changes: Any) -> pb.RunDescription:
    fields: dict[str, Any] = {
        "run_id": "run-1",
        "name": "a run",
        "model_json": "{}",
        "residency": "frozen",
        "codec": "bf16",
        "sequence_length": 16,
        "dataset_digest": "a" * 64,
        "max_block_bytes": 1 << 20,
    }
    return pb.RunDescription(**{**fields, **changes})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run_id", ""),
        ("residency", "elsewhere"),
        ("model_json", "x" * (1 << 17)),
        ("sequence_length", 0),
        ("sequence_length", 1 << 30),
        ("dataset_digest", "A" * 64),
        ("max_block_bytes", 0),
        ("max_block_bytes", 1 << 60),
        ("frozen_codec", "zip"),
        ("optimizer", "sgd"),
        ("masters", "fp8"),
        ("moments", "none"),
        ("frozen_dtype", "int2"),
        ("trunk", "half"),
        ("lora_rank", 1 << 20),
    ],
)
def test_a_run_that_makes_no_sense_is_refused(field: str, value: Any) -> None:
    description_from_message(run_message())
    with pytest.raises(MalformedMessage, match=field):
        description_from_message(run_message(**{field: value}))


def test_what_a_lease_takes_in_memory_is_told_with_the_run() -> None:
    rungs: dict[str, Any] = {"masters": "bf16", "moments": "compact", "optimizer": "adamw", "frozen_dtype": "int4"}
    assert description_from_message(run_message(**rungs)).recipe == Recipe(**rungs)
    assert description_from_message(run_message()).recipe == Recipe()
    assert description_from_message(run_message(trunk="lora", lora_rank=3)).recipe == Recipe(trunk="lora", lora_rank=3)


def test_text_from_the_network_cannot_steer_a_terminal() -> None:
    assert printable("a\x1b[2Jb\nc\u202ed") == "a [2Jb c d"
    assert printable("x" * 1000) == "x" * 400 + "…"

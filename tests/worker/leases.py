"""A valid lease, as the coordinator sends it and as the worker reads it: the one that tests change a field of."""

from __future__ import annotations

from typing import Any

from protocol.v1 import barnraise_pb2 as pb
from worker.lease import Lease, lease_from_message


def lease_message(**changes: Any) -> pb.Lease:
    """Five steps of four sequences on columns 0 and 2 of 4."""
    fields: dict[str, Any] = {
        "lease_id": "r1.1",
        "round": 1,
        "base_version": 0,
        "columns": [0, 2],
        "data": pb.DataRange(seed=1, start=0, count=20),
        "seed": 3,
        "inner_steps": 5,
        "batch_sequences": 4,
        "learning_rate": 1e-2,
        "router_lr_scale": 0.1,
        "warmup_steps": 1,
        "weight_decay": 0.01,
        "adam_beta1": 0.9,
        "adam_beta2": 0.99,
        "adam_eps": 1e-8,
        "clip_norm": 1.0,
        "optimizer": "adamw",
        "muon_learning_rate": 0.02,
        "muon_momentum": 0.95,
        "ttl_s": 60.0,
    }
    return pb.Lease(**{**fields, **changes})


def read_lease(message: pb.Lease) -> Lease:
    """As a worker reads it that holds up to 3 columns of a model of 4, on sequences of 16 tokens."""
    return lease_from_message(message, max_columns=3, layout_columns=4, sequence_length=16)

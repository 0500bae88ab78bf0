"""A valid lease, as the coordinator sends it and as the worker reads it: the one that tests change a field of."""

from __future__ import annotations

import dataclasses
from typing import Any

from protocol.messages import fill
from protocol.recipe import Recipe
from protocol.v1 import barnraise_pb2 as pb
from worker.lease import ReceivedLease, lease_from_message

ADAMW_RECIPE = Recipe(optimizer="adamw", learning_rate=1e-2, muon_learning_rate=0.02, warmup_steps=1)
RECIPE_FIELDS = {field.name for field in dataclasses.fields(Recipe)}


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
        "codec": "fp32",
        "ttl_s": 60.0,
    }
    of_recipe = {name: changes.pop(name) for name in RECIPE_FIELDS & changes.keys()}
    message = pb.Lease(**{**fields, **changes})
    fill(message.recipe, ADAMW_RECIPE, Recipe)
    for name, value in of_recipe.items():
        setattr(message.recipe, name, value)
    return message


def changed_lease(lease: ReceivedLease, **changes: Any) -> ReceivedLease:
    """`lease` with other values; the recipe's fields by their own names, the data range's as `data_count`."""
    of_recipe = {name: changes.pop(name) for name in RECIPE_FIELDS & changes.keys()}
    of_data = {name: changes.pop(f"data_{name}") for name in ("seed", "start", "count") if f"data_{name}" in changes}
    recipe = dataclasses.replace(lease.recipe, **of_recipe)
    data = dataclasses.replace(lease.data, **of_data)
    return dataclasses.replace(lease, recipe=recipe, data=data, **changes)


def read_lease(message: pb.Lease) -> ReceivedLease:
    """As a worker reads it that holds up to 3 columns of a model of 4, on sequences of 16 tokens."""
    return lease_from_message(message, max_columns=3, layout_columns=4, sequence_length=16)

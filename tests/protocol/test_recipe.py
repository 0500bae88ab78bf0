"""A recipe's fields are listed in the class and in the proto, and everything else follows from the class."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from protocol.ids import LeaseId, RoundNumber, Version
from protocol.lease import DataRange, Lease
from protocol.messages import fill, record_of
from protocol.recipe import OPTIMIZERS, Recipe, breaches, recipe_of
from protocol.v1 import barnraise_pb2 as pb

KINDS = {
    "str": FieldDescriptor.TYPE_STRING,
    "float": FieldDescriptor.TYPE_DOUBLE,
    "int": FieldDescriptor.TYPE_UINT32,
}


def odd(field: dataclasses.Field[Any]) -> Any:
    """A value within the field's bounds that is not its default."""
    if "choices" in field.metadata:
        return next(choice for choice in field.metadata["choices"] if choice != field.default)
    low, high = field.metadata["low"], field.metadata["high"]
    return low + 7 if isinstance(field.default, int) else low + 0.37 * (high - low)


ODD = Recipe(**{field.name: odd(field) for field in dataclasses.fields(Recipe)})
"""No default among them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wider(Recipe):
    more: int = 1


def test_the_proto_has_the_fields_of_the_class() -> None:
    assert {field.name: field.type for field in pb.Recipe.DESCRIPTOR.fields} == {
        field.name: KINDS[str(field.type)] for field in dataclasses.fields(Recipe)
    }


def test_a_lease_crosses_the_wire_whole() -> None:
    lease = Lease(
        lease_id=LeaseId("r1.1"), round=RoundNumber(3), base_version=Version(2), columns=(0, 5),
        data=DataRange(seed=2**63, start=7, count=40), seed=9, inner_steps=5, batch_sequences=8, recipe=ODD,
        lora_seed=2**63 + 1,
    )  # fmt: skip
    assert not any(value == getattr(Recipe(), name) for name, value in dataclasses.asdict(ODD).items())
    message = pb.Lease(ttl_s=30.0)
    fill(message, lease, Lease)
    assert record_of(Lease, pb.Lease.FromString(message.SerializeToString())) == lease
    assert message.ttl_s == 30.0


def test_a_recipe_is_taken_out_of_what_has_more_fields() -> None:
    wider = Wider(**dataclasses.asdict(ODD), more=2)
    assert recipe_of(wider) == ODD


def test_the_default_is_within_its_own_bounds() -> None:
    assert list(breaches(Recipe())) == []
    for optimizer in OPTIMIZERS:
        assert list(breaches(Recipe(optimizer=optimizer))) == []


@pytest.mark.parametrize("field", dataclasses.fields(Recipe), ids=lambda field: field.name)
def test_each_field_is_bounded_and_named(field: dataclasses.Field[Any]) -> None:
    if "choices" in field.metadata:
        wrong: list[Any] = ["", "sgd"]
    else:
        low, high = field.metadata["low"], field.metadata["high"]
        wrong = [low - 1e-6, high + 1.0, math.nan, math.inf, -math.inf]
        for right in (low, high):
            assert list(breaches(dataclasses.replace(ODD, **{field.name: right}))) == []
    for value in wrong:
        found = list(breaches(dataclasses.replace(ODD, **{field.name: value})))
        assert [breach.field for breach in found] == [field.name]

"""What is said of values that do not fit: what was expected and what came, and nothing of the library that found it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from protocol.misfits import misfits


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["mean", "median"] = "mean"


class Everything(BaseModel):
    model_config = ConfigDict(extra="forbid")
    number: Annotated[float, Field(le=19, gt=0, allow_inf_nan=False)] = 1.0
    whole: Annotated[int, Field(ge=1, lt=10)] = 1
    on: bool = True
    name: Annotated[str, Field(max_length=3, min_length=1, pattern="[a-z]+")] = "a"
    names: Annotated[tuple[str, ...], Field(max_length=1)] = ()
    pair: tuple[int, int] = (1, 2)
    folder: Path | None = None
    inner: Inner = Inner()
    must: int
    checked: int = 0

    @field_validator("checked")
    @classmethod
    def _is_even(cls, value: int) -> int:
        if value % 2:
            raise ValueError(f"the number of hands is even, got {value}")
        return value


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"number": "much"}, "number: expected a number, got 'much'"),
        ({"number": 20}, "number: expected at most 19, got 20"),
        ({"number": -1}, "number: expected more than 0, got -1"),
        ({"number": float("inf")}, "number: expected a finite number, got inf"),
        ({"whole": 2.5}, "whole: expected a whole number, got 2.5"),
        ({"whole": "x"}, "whole: expected a whole number, got 'x'"),
        ({"whole": 0}, "whole: expected at least 1, got 0"),
        ({"whole": 10}, "whole: expected less than 10, got 10"),
        ({"on": "perhaps"}, "on: expected true or false, got 'perhaps'"),
        ({"name": "long"}, "name: expected at most 3 characters, got 'long'"),
        ({"name": ""}, "name: expected at least 1 characters, got ''"),
        ({"name": 7}, "name: expected text, got 7"),
        ({"name": "7"}, "name: '7' does not fit"),
        ({"names": "one"}, "names: expected a list, as in ['one', 'other'], got 'one'"),
        ({"names": ["one", "other"]}, "names: expected at most 1 entries, got ['one', 'other']"),
        ({"pair": [1]}, "pair.1: it is missing"),
        ({"folder": 7}, "folder: expected a path, got 7"),
        ({"inner": {"kind": "mode"}}, "inner.kind: expected 'mean' or 'median', got 'mode'"),
        ({"inner": 3}, "inner: expected a table of settings, got 3"),
        ({"inner": {"kinds": 1}}, "inner.kinds: there is no such setting"),
        ({"must": None}, "must: expected a whole number, got None"),
        ({"checked": 3}, "checked: the number of hands is even, got 3"),
        ({"name": "\x1b[2J" + "a" * 1000}, None),
    ],
)
def test_every_kind_is_told_in_our_words(values: dict[str, Any], said: str | None) -> None:
    with pytest.raises(ValidationError) as raised:
        Everything.model_validate({"must": 1, **values})
    (found,) = [f"{where}: {what}" for where, what in misfits(raised.value)]
    assert found == said or (said is None and found.isprintable() and len(found) < 150), found


def test_what_is_missing_and_what_is_no_table_at_all() -> None:
    with pytest.raises(ValidationError) as raised:
        Everything.model_validate({})
    assert misfits(raised.value) == [("must", "it is missing")]
    with pytest.raises(ValidationError) as raised:
        Everything.model_validate_json("[")
    assert [where for where, _ in misfits(raised.value)] == [""]

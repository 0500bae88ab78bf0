"""Whose trouble a failure is."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from coordinator.engine.events import CommandTrouble
from coordinator.work.failures import trouble_of
from protocol.errors import LocalError, MalformedMessage, StorageTrouble


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def cpu_out_of_memory() -> Exception:
    try:
        torch.empty(1 << 60, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    raise AssertionError("a machine with an exabyte of memory")


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        StorageTrouble("the disk is full"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        cpu_out_of_memory(),
        raised_from(LocalError("a block could not be kept"), OSError(5, "Input/output error")),
    ],
    ids=repr,
)
def test_disk_and_memory_are_the_machines(error: Exception) -> None:
    assert trouble_of(error) is CommandTrouble.MACHINE


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError(),
        LocalError("aggregation: expected a largest norm above 0"),
        MalformedMessage("6 tensors of 7"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        cast(Any, torch.linalg).LinAlgError("singular"),
        KeyError("w"),
    ],
    ids=repr,
)
def test_everything_else_is_what_went_in(error: Exception) -> None:
    assert trouble_of(error) is CommandTrouble.CONTENT

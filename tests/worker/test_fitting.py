"""A micro-batch that did not fit is not tried again; and what counts as memory that was missing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from moe.rungs import Schedule
from protocol.lease import Lease
from worker.train.fitting import Fitting
from worker.trouble import is_out_of_memory

Make = Callable[..., Lease]


def test_what_came_down_once_stays_down_for_leases_of_its_kind(make_lease: Make) -> None:
    fitting, planned = Fitting(), Schedule(4)
    fitting.note(make_lease(), planned, 4)
    assert fitting.at_most(make_lease(), planned) == 4
    fitting.note(make_lease(), planned, 2)
    assert fitting.at_most(make_lease(seed=8, learning_rate=1e-4), planned) == 2
    assert fitting.at_most(make_lease(), Schedule(1)) == 1
    for other in (make_lease(columns=(0,)), make_lease(masters="bf16"), make_lease(optimizer="muon")):
        assert fitting.at_most(other, planned) == 4
    assert fitting.at_most(make_lease(), Schedule(4, by_layers=True)) == 4


def test_a_batch_that_is_smaller_than_planned_has_not_come_down(make_lease: Make) -> None:
    fitting = Fitting()
    fitting.note(make_lease(batch_sequences=2, inner_steps=10), Schedule(4), 2)
    assert fitting.at_most(make_lease(), Schedule(4)) == 4


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no"),
        MemoryError(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("HIP out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: not enough memory"),
    ],
    ids=str,
)
def test_memory_is_what_was_missing(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("text", ["CUDA error: device-side assert triggered", "mat1 and mat2 shapes do not match"])
def test_or_something_else_was(text: str) -> None:
    assert not is_out_of_memory(RuntimeError(text))

"""Aggregation is measured on one thread, as the coordinator runs it beside everything else."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)

"""Shared by the simulator's tests: one torch thread, as every process of a swarm has."""

from __future__ import annotations

import torch

torch.set_num_threads(1)

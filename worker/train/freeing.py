"""Memory of a model that was dropped goes back, at once and whole.

Decides nothing. A module whose `forward` was replaced by a function of itself is in a circle, and would stay until
Python's collector next comes by: with a new model built meanwhile there were two (1.56 billion parameters, three
columns of eighty: 1,280 MB at the second lease, where the first had taken 870). The circle is cut here; collecting
would look through all that a process has, for half a second in which nothing else runs. Touches this process's memory
alone.
"""

from __future__ import annotations

import torch

from moe.shard import ShardModel
from protocol.allocator import give_back_all

SMALL_BYTES = 16 << 20
"""Of a smaller model the C library keeps little, and looking for it in a large process takes longer than a step."""


def drop_shard(shard: ShardModel | None, device: str) -> None:
    """Its weights go; nobody is to use it again."""
    if shard is None:
        return
    dropped_bytes = sum(parameter.nbytes for parameter in shard.module.parameters())
    for part in list(shard.module.modules()):
        part.__dict__.clear()
    shard.__dict__.clear()
    if dropped_bytes >= SMALL_BYTES or device != "cpu":  # a GPU's allocator keeps activations, whatever the model
        free_caches(device)


def free_caches(device: str) -> None:
    """Give back what the libraries keep of what was dropped: on `device`, and of this process."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    give_back_all()

"""How much tensors hold at once, whatever an allocator makes of it: counted where torch makes them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """The most that what is made inside, in this thread, holds at once: neither views, nor what lies in files."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._made: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what `func` makes: memory that none of its arguments has."""
        found = func(*args, **(kwargs or {}))
        given = {
            StorageWeakRef(one.untyped_storage()) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)
        }
        for one in tree_leaves(found):
            if isinstance(one, Tensor) and (made := StorageWeakRef(one.untyped_storage())) not in given:
                self._made[made] = one.untyped_storage().nbytes()
        self._made = {made: size for made, size in self._made.items() if not made.expired()}
        self.peak_bytes = max(self.peak_bytes, sum(self._made.values()))
        return found

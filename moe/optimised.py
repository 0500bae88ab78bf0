"""Which group of the optimizer each trained tensor of a shard belongs to.

Decides what is a matrix, and how it lies; touches nothing. Holds always: each tensor is in one group; what is told
apart here is told by what a tensor is for, not by what a class calls it, but for what a family's row names.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn
from transformers import PreTrainedModel

from moe.families import Family
from moe.undispatched import APART

MATRICES: Final = frozenset({"matrices", "turned", "fused"})
"""Groups that Muon takes."""
FACTORS: Final = "factors"
"""The group of what is trained in the place of a trunk's matrices (`moe.factors`)."""
ROUNDED: Final = MATRICES | {"head", "embeddings"}
"""Groups whose weights are kept to bf16 values where a recipe's masters are bf16: what is large."""


class OptimiserGroups:
    """Sorts the tensors of one model."""

    def __init__(self, module: PreTrainedModel, family: Family) -> None:
        self._family = family
        head = module.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._head = None if head is None else id(head.weight)
        self._embeddings = {id(one.weight) for one in module.modules() if isinstance(one, nn.Embedding)}
        matrices = [part.suffix for part in family.experts if part.matrices]
        self._fused = tuple(part.suffix for part in family.experts if part.matrices > 1)
        self._turned = tuple(matrices if family.transposed else matrices[-1:] if family.undispatched == APART else ())
        self.transposed = family.transposed
        """Whether fused matrices lie side by side: they are applied from the right."""
        self.interleaved = any(getattr(one, "is_concatenated", True) is False for one in module.modules())
        """Whether rows of the two fused matrices take turns."""

    def kind(self, name: str, tensor: Tensor) -> str:
        """The name of its group."""
        part = self._family.per_expert(name)
        if self._family.is_router(name):
            return "routers" if part is not None and part.matrices else "router_vectors"
        # A row for each channel of a convolution, or one row in all, is a vector as a bias is: nothing to level in it.
        vector = tensor.ndim < 2 or 1 in tensor.shape[-2:] or (part is not None and not part.matrices)
        if vector:
            return "undecayed"
        if id(tensor) in self._embeddings:
            return "embeddings"
        if id(tensor) == self._head:
            return "head"
        if name.endswith(self._fused):
            return "fused"
        return "turned" if name.endswith(self._turned) else "matrices"

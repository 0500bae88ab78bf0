"""Lies about a worker's own result: what is sent instead, from what it computed itself. Touches nothing.

Loads no torch before one of them is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.ids import TRUNK

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from protocol.submission import Blocks
    from simulator.adversaries.attack import Colluders

SPOILT_ROWS = 3


def sign_flip(tensor: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """The opposite."""
    return tensor * -strength


def scale(tensor: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Too much, or too little, of the truth."""
    return tensor * strength


def noise(tensor: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Gaussian, `strength` times as long as the truth."""
    import torch

    drawn = torch.randn(tensor.shape, generator=generator)
    length = torch.linalg.vector_norm(drawn).clamp_min(1e-12)
    forged: Tensor = drawn * (strength * torch.linalg.vector_norm(tensor.float()) / length)
    return forged.to(tensor.dtype)


def nan(tensor: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """One value that is not a number."""
    import torch

    spoilt = tensor.clone()
    if spoilt.numel():
        spoilt.view(-1)[int(torch.randint(spoilt.numel(), (1,), generator=generator))] = float("nan")
    return spoilt


def zeroed_columns(view: Colluders, strength: float, generator: torch.Generator) -> Blocks:
    """An honest trunk, and a share `strength` of every column taken away."""
    return {
        block: {name: tensor.clone() if block == TRUNK else tensor * (1.0 - strength) for name, tensor in own.items()}
        for block, own in view.own.pseudo_gradient.items()
    }


def spoilt_rows(view: Colluders, strength: float, generator: torch.Generator) -> Blocks:
    """Of the embedding, the rows that moved most are driven the other way: the trunk's length grows by `strength`.

    Half a step of it still looks like progress where the rest of the trunk makes some; a whole one does not.
    """
    import torch

    forged = {block: dict(tensors) for block, tensors in view.own.pseudo_gradient.items()}
    trunk = forged[TRUNK]
    name = _embedding(trunk)
    rows_VD = trunk[name].float().clone()
    lengths_V = torch.linalg.vector_norm(rows_VD, dim=1)
    most = torch.topk(lengths_V, min(SPOILT_ROWS, len(lengths_V))).indices
    whole = torch.stack([torch.linalg.vector_norm(tensor.float()) for tensor in trunk.values()]).norm()
    chosen_RD = rows_VD[most]
    away_RD = -chosen_RD / torch.linalg.vector_norm(chosen_RD).clamp_min(1e-12)
    rows_VD[most] = strength * whole * away_RD
    trunk[name] = rows_VD.to(trunk[name].dtype)
    return forged


def _embedding(trunk: dict[str, Tensor]) -> str:
    """The trunk's tensor with a row for each token: by its name, or else the tallest matrix."""
    matrices = {name: tensor for name, tensor in trunk.items() if tensor.dim() == 2}
    named = [name for name in matrices if "embed" in name]
    return named[0] if named else max(matrices, key=lambda name: matrices[name].shape[0])

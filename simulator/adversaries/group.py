"""Lies that take what the whole group of liars computed, or what the worker computed before. Touches nothing.

Always: what is sent is a function of what the group sees; nobody sees honest workers' submissions, which go to the
coordinator alone. Loads no torch before one of them is called. W: holders of a block within the group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from protocol.ids import TRUNK, BlockId

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from protocol.submission import Blocks
    from simulator.adversaries.attack import Colluders

SPARSE_SHARE = 0.001
"""Of all entries: one in a thousand."""
BOLDER, SHYER = 1.15, 0.5
"""After a submission that was accepted, and after one that was refused."""
CAPTURED = 2
"""Of a column's usual three replicas: with so many its robust rule answers what they say."""


def a_little(own: Tensor, held_W: Tensor, strength: float) -> Tensor:
    """Mean less `strength` standard deviations ("A Little Is Enough", Baruch et al. 2019, arXiv:1902.06156)."""
    return held_W.mean(dim=0) - strength * held_W.std(dim=0, correction=0)


def inner_product(own: Tensor, held_W: Tensor, strength: float) -> Tensor:
    """-strength x mean: at 1 and below, as long as the truth ("Fall of Empires", Xie et al. 2019, arXiv:1903.03936)."""
    return -strength * held_W.mean(dim=0)


def copies(own: Tensor, held_W: Tensor, strength: float) -> Tensor:
    """What the first of the group computed: one works, the others send it again."""
    return held_W[0]


def stale(view: Colluders, strength: float, generator: torch.Generator) -> Blocks:
    """What it computed for the same block up to `strength` rounds ago; the truth where it never held it."""
    before = [one for one in view.earlier if one.round >= view.own.round - strength]
    return {
        block: next((one.pseudo_gradient[block] for one in before if block in one.pseudo_gradient), tensors)
        for block, tensors in view.own.pseudo_gradient.items()
    }


def sparse(view: Colluders, strength: float, generator: torch.Generator) -> Blocks:
    """One entry in a thousand, those of most weight, `strength` root mean squares the other way; all the same ones."""
    import torch

    forged: dict[BlockId, dict[str, Tensor]] = {}
    for block, own in view.own.pseudo_gradient.items():
        held = view.holding(block)
        flat = {name: torch.stack([one[name].float() for one in held]).mean(dim=0).reshape(-1) for name in own}
        whole = torch.cat(list(flat.values()))
        most = max(1, round(SPARSE_SHARE * whole.numel()))
        least = torch.topk(whole.abs(), min(most, whole.numel())).values[-1]
        rms = whole.square().mean().sqrt()
        forged[block] = {}
        for name, tensor in own.items():
            struck = flat[name].abs() >= least
            sent = torch.where(struck, -strength * rms * flat[name].sign(), tensor.float().reshape(-1))
            forged[block][name] = sent.reshape(tensor.shape).to(tensor.dtype)
    return forged


def hugging(view: Colluders, strength: float, generator: torch.Generator) -> Blocks:
    """As little of the truth as is accepted, and as much of one fixed direction as the honest length leaves room for.

    A share 1 - c of the group's mean; c is `strength` at first, grows with each acceptance and falls with each refusal.
    """
    import torch

    c = strength
    for accepted in view.verdicts:
        c *= BOLDER if accepted else SHYER
    forged: dict[BlockId, dict[str, Tensor]] = {}
    for block, own in sorted(view.own.pseudo_gradient.items()):
        fixed, held = torch.Generator().manual_seed(len(block)), view.holding(block)
        mean = {name: torch.stack([one[name].float() for one in held]).mean(dim=0) for name in sorted(own)}
        drift = {name: torch.randn(tensor.shape, generator=fixed) for name, tensor in mean.items()}
        kept = {name: (1.0 - c) * tensor for name, tensor in mean.items()}
        room = (_length(own) ** 2 - _length(kept) ** 2).clamp_min(0.0).sqrt() / _length(drift).clamp_min(1e-12)
        forged[block] = {name: (kept[name] + room * drift[name]).to(own[name].dtype) for name in own}
    return forged


def column_capture(view: Colluders, strength: float, generator: torch.Generator) -> Blocks:
    """The truth, but for columns of which the group holds the majority: there -`strength` x its mean."""
    import torch

    forged: dict[BlockId, dict[str, Tensor]] = {}
    for block, own in view.own.pseudo_gradient.items():
        held = view.holding(block)
        if block == TRUNK or len(held) < CAPTURED:
            forged[block] = dict(own)
            continue
        means = {name: torch.stack([one[name].float() for one in held]).mean(dim=0) for name in own}
        forged[block] = {name: (-strength * means[name]).to(own[name].dtype) for name in own}
    return forged


def _length(tensors: Mapping[str, Tensor]) -> Tensor:
    import torch

    lengths: Tensor = torch.stack([torch.linalg.vector_norm(tensor.float()) for tensor in tensors.values()])
    return lengths.square().sum().sqrt()

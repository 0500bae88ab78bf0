"""An attack that nobody has in the table: a lie that hides within the spread of what its group honestly computed.

The mean less STRENGTH standard deviations, coordinate by coordinate ("a little is enough", Baruch et al. 2019,
arXiv:1902.06156).
"""

from __future__ import annotations

import torch

from protocol.ids import BlockId
from protocol.submission import Blocks
from simulator.adversaries.attack import Attack, Colluders


def little(view: Colluders, strength: float, generator: torch.Generator) -> Blocks:
    forged: dict[BlockId, dict[str, torch.Tensor]] = {}
    for block, own in view.own.pseudo_gradient.items():
        forged[block] = {}
        for name, tensor in own.items():
            seen_WP = torch.stack([tensors[name] for tensors in view.holding(block)])
            away = seen_WP.std(dim=0, correction=0) * strength
            forged[block][name] = (seen_WP.mean(dim=0) - away).to(tensor.dtype)
    return forged


ROW = Attack(does="sends the group's mean less STRENGTH standard deviations", strength=1.5, forge=little)

"""Products of sorted rows with their experts' weights in one batched product, where torch's grouped one is slow.

Decides how rows are laid out: every expert's at the same distance, up to twice as many places as there are rows; what
one expert has above that is multiplied alone. torch's `grouped_mm` is one kernel only in bf16 on SM90 and SM100; on
other cards, and in fp32 anywhere, it reads the ends of all groups to the host and takes one product an expert, each
time that it is called: six times a layer. Here they are read once a layer, and the rest is one `bmm`. Holds always:
what comes out is the grouped product but for rounding, the same bits every time, and never more than 2S + E places.

Shapes: S rows, sorted by their experts' slots; E slots, P places of each; H and N widths; D held slots.
"""

from __future__ import annotations

import itertools
from typing import Final

import torch
from torch import Tensor

GROUPED: Final = "grouped"
"""torch's own grouped product."""
PADDED: Final = "padded"
"""This one."""
EXPERT_PRODUCTS: Final = (GROUPED, PADDED)
_ROOM: Final = 2
"""Times the rows: as many places at most."""


class Padding:
    """Where each row of one layer's pass lies, for all of its products."""

    def __init__(self, slots_S: Tensor, ends_E: Tensor) -> None:
        """`slots_S` ascending, int64; `ends_E` where each slot's rows end. Reads the ends to the host."""
        rows = slots_S.shape[0]
        ends = ends_E.tolist()
        sizes = [end - start for start, end in itertools.pairwise([0, *ends])]
        self._slots = len(ends)
        self._places = max(1, min(max(sizes), _ROOM * rows // self._slots))
        self._alone = [
            (slot, slice(end - size + self._places, end))
            for slot, (size, end) in enumerate(zip(sizes, ends, strict=True))
            if size > self._places
        ]
        """Slots with more rows than places, and those rows."""
        starts_E = ends_E - torch.diff(ends_E, prepend=ends_E.new_zeros(1))
        within_S = torch.arange(rows, device=slots_S.device) - starts_E[slots_S]
        place_S = slots_S * self._places + within_S
        # what has no place is put behind the last one, all in one row, from where nothing is read
        self._place_S = torch.where(within_S < self._places, place_S, self._slots * self._places)

    def times(self, x_SH: Tensor, weights_EHN: Tensor) -> Tensor:
        """[S, N]: each row times its expert's weights."""
        out_EPN = torch.bmm(self._laid_out(x_SH, self._slots), weights_EHN)
        out_SN = self._gathered(out_EPN)
        for slot, rows in self._alone:
            out_SN[rows] = x_SH[rows] @ weights_EHN[slot]
        return out_SN

    def summed(self, left_SN: Tensor, right_SH: Tensor, held: int) -> Tensor:
        """[D, N, H]: for each of the first slots the sum of its rows' outer products."""
        left_DPN, right_DPH = self._laid_out(left_SN, held), self._laid_out(right_SH, held)
        out_DNH = torch.bmm(left_DPN.mT, right_DPH)
        for slot, rows in self._alone:
            if slot < held:
                out_DNH[slot].addmm_(left_SN[rows].t(), right_SH[rows])
        return out_DNH

    def _laid_out(self, x_SH: Tensor, slots: int) -> Tensor:
        """[slots, P, H], zeros where no row lies."""
        places = slots * self._places
        laid_out = x_SH.new_zeros((places + 1, x_SH.shape[1]))
        laid_out[self._place_S.clamp_max(places)] = x_SH
        return laid_out[:places].view(slots, self._places, -1)

    def _gathered(self, out_EPN: Tensor) -> Tensor:
        flat = out_EPN.flatten(0, 1)
        return flat.index_select(0, self._place_S.clamp_max(flat.shape[0] - 1))

"""The largest 64 of 4096 values in two bits each, with error feedback that fades.

Of each block the values of largest magnitude are sent: their sign, and which of two magnitudes, the block's own, is
nearer. Their places are sorted and written as Elias and Fano did (https://doi.org/10.1145/321812.321820): the lowest
6 bits as they are, the rest as a bit map of twice as many bits as there are values. That takes 8 bits a place, always;
the least that any code of a fixed size could do is 7.4. What is not sent is kept, and 0.95 of it is added to the next
encoding (SparseLoCo, https://arxiv.org/abs/2508.15706).

Bound: a value is off by at most 1.01 of the larger of its block's largest magnitude and 2**-126, and the L2 norm of
a block's error is at most 1.001 of the block's own (where its scales are above 2**-126; else nothing is sent).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.codecs_grouped import LARGEST_BF16, SMALLEST_NORMAL, GroupedCodec, require_finite
from protocol.errors import MalformedMessage

if TYPE_CHECKING:
    from torch import Tensor

_SPARSITY = 64
"""One value of so many is sent, and a place's lowest bits count to so many."""
_LOW_BITS = 6
_FOLDS = 8
"""A block is first looked at as so many layers, of which only the largest values can hold what is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopKCodec(GroupedCodec):
    """A block's bytes: the values, four to a byte; the places' low bits, four to three bytes; the bit map."""

    @property
    def scales_per_group(self) -> int:
        """The smaller magnitude and the larger."""
        return 2

    @property
    def bits_per_parameter(self) -> float:
        """A block's bytes and its scales."""
        return (8 * self.code_bytes(self.group) + 32) / self.group

    def code_bytes(self, elements: int) -> int:
        """Of whole blocks, and of a shorter last one."""
        blocks, rest = divmod(elements, self.group)
        return 5 * (blocks * _quads(self.group) + _quads(rest))

    def _pack(self, wanted_GN: Tensor, elements: int, scales_G: Tensor, codes: Tensor) -> None:
        blocks, rest = divmod(elements, self.group)
        split = self.code_bytes(blocks * self.group)
        if blocks:
            _pack_blocks(wanted_GN[:blocks], scales_G[: 2 * blocks].view(-1, 2), codes[:split].view(blocks, -1))
        if rest:
            _pack_blocks(wanted_GN[blocks:, :rest], scales_G[2 * blocks :].view(1, 2), codes[split:].view(1, -1))

    def _decode(self, scales_G: Tensor, codes: Tensor, values: Tensor) -> None:
        blocks, rest = divmod(values.numel(), self.group)
        split = self.code_bytes(blocks * self.group)
        if blocks:
            whole_BN = values[: blocks * self.group].view(blocks, -1)
            _unpack_blocks(scales_G[: 2 * blocks].view(-1, 2), codes[:split].view(blocks, -1), whole_BN)
        if rest:
            _unpack_blocks(scales_G[2 * blocks :].view(1, 2), codes[split:].view(1, -1), values[-rest:].view(1, -1))

    def _unpack(self, codes: Tensor, levels: Tensor) -> None:
        raise NotImplementedError  # places and scales are not told apart


def _pack_blocks(wanted_BN: Tensor, scales_B2: Tensor, bytes_BY: Tensor) -> None:
    import torch

    magnitude_BN = wanted_BN.abs()
    require_finite(magnitude_BN.amax(-1))
    sent = _sent(wanted_BN.shape[1])
    place_BK = _largest(magnitude_BN, sent).sort(-1).values
    chosen_BK = wanted_BN.gather(1, place_BK)
    magnitude_BK = chosen_BK.abs()
    scales_B2.copy_(_two_magnitudes(magnitude_BK))
    middle_B = scales_B2.to(torch.float32).mul_(0.5).sum(-1, keepdim=True)
    code_BK = (chosen_BK < 0).to(torch.int32).add_((magnitude_BK > middle_B).to(torch.int32), alpha=2)

    quads = _quads(wanted_BN.shape[1])
    shape = (len(wanted_BN), 4, quads)
    filled = (0, 4 * quads - sent)
    first, second, third, fourth = torch.nn.functional.pad(code_BK, filled).view(shape).unbind(1)
    bytes_BY[:, :quads] = first | second << 2 | third << 4 | fourth << 6
    low_BK = place_BK.to(torch.int32).bitwise_and_(_SPARSITY - 1)
    first, second, third, fourth = torch.nn.functional.pad(low_BK, filled).view(shape).unbind(1)
    whole = first | second << 6 | third << 12 | fourth << 18
    for index in range(3):
        bytes_BY[:, (1 + index) * quads : (2 + index) * quads] = whole >> 8 * index
    map_BM = torch.zeros(len(wanted_BN), 8 * quads, dtype=torch.int32, device=wanted_BN.device)
    map_BM.scatter_(1, (place_BK >> _LOW_BITS) + torch.arange(sent, device=place_BK.device), 1)
    eighths = torch.arange(8, dtype=torch.int32, device=place_BK.device)
    bytes_BY[:, 4 * quads :] = (map_BM.view(len(wanted_BN), quads, 8) << eighths).sum(-1)


def _unpack_blocks(scales_B2: Tensor, bytes_BY: Tensor, values_BN: Tensor) -> None:
    """MalformedMessage unless each block has as many places as it must, each further on than the one before."""
    import torch

    elements = values_BN.shape[1]
    sent, quads = _sent(elements), _quads(elements)
    eighths = torch.arange(8, dtype=torch.uint8, device=bytes_BY.device)
    map_BM = (bytes_BY[:, 4 * quads :].unsqueeze(-1) >> eighths).bitwise_and_(1).view(len(bytes_BY), -1)
    if bool((map_BM.sum(-1) != sent).any()):
        raise MalformedMessage(f"top_k: a block of {elements} values that has not {sent} places")
    bucket_BK = map_BM.nonzero()[:, 1].view(-1, sent) - torch.arange(sent, device=bytes_BY.device)
    first, second, third = bytes_BY[:, quads : 4 * quads].to(torch.int64).chunk(3, dim=1)
    whole = first | second << 8 | third << 16
    low_BK = torch.cat([whole >> 6 * index for index in range(4)], dim=1)[:, :sent].bitwise_and_(_SPARSITY - 1)
    place_BK = (bucket_BK << _LOW_BITS) | low_BK
    if bool((place_BK[:, -1] >= elements).any()) or bool((place_BK.diff(dim=1) <= 0).any()):
        raise MalformedMessage(f"top_k: places that do not rise, or lie outside a block of {elements} values")
    plain = bytes_BY[:, :quads]
    code_BK = torch.cat([plain >> 2 * index for index in range(4)], dim=1)[:, :sent].to(torch.int64)
    chosen_BK = scales_B2.to(torch.float32).gather(1, (code_BK >> 1).bitwise_and_(1))
    chosen_BK.mul_(1 - 2 * code_BK.bitwise_and_(1))
    values_BN.zero_().scatter_(1, place_BK, chosen_BK)


def _two_magnitudes(magnitude_BK: Tensor) -> Tensor:
    """[B, 2]: the means of those up to the mean, and of those above it."""
    import torch

    largest_B1 = magnitude_BK.amax(-1, keepdim=True)
    unit_BK = magnitude_BK / largest_B1.clamp(min=SMALLEST_NORMAL)  # sums of which do not overflow
    above_BK = (unit_BK > unit_BK.mean(-1, keepdim=True)).to(torch.float32)
    parts = torch.stack((1 - above_BK, above_BK), dim=-1)
    means_B2 = (unit_BK.unsqueeze(-1) * parts).sum(1) / parts.sum(1).clamp_(min=1)
    means_B2 = means_B2.cummax(-1).values  # where all are equal, none is above the mean
    means_B2 = (means_B2 * largest_B1).clamp_(max=LARGEST_BF16)
    return torch.where(means_B2 < SMALLEST_NORMAL, 0.0, means_B2)


def _largest(magnitude_BN: Tensor, count: int) -> Tensor:
    """[B, count]: places of the largest of each row."""
    import torch

    blocks, elements = magnitude_BN.shape
    if elements % _FOLDS or elements // _FOLDS < count:
        return magnitude_BN.topk(count, dim=-1, sorted=False).indices
    folded = magnitude_BN.view(blocks, _FOLDS, -1)
    columns = folded.amax(1).topk(count, dim=-1, sorted=False).indices
    candidates = folded.gather(2, columns.unsqueeze(1).expand(-1, _FOLDS, -1)).view(blocks, -1)
    found = candidates.topk(count, dim=-1, sorted=False).indices
    layer = torch.div(found, count, rounding_mode="floor")
    return layer * (elements // _FOLDS) + columns.gather(1, found % count)


def _sent(elements: int) -> int:
    """Values that are sent of a block of so many."""
    return -(-elements // _SPARSITY)


def _quads(elements: int) -> int:
    """Bytes of their codes: even."""
    return 2 * -(-_sent(elements) // 8)


TOP_K = TopKCodec(name="top_k", group=4096, has_state=True, state_decay=0.95)

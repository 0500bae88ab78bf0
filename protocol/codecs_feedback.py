"""Two bits and ternary, with error feedback: what an encoding lost is added to the next one of the same tensor.

A group is scaled by its root mean square, rounded once to its nearest levels, and its scale is then the one that
fits those best; so a group is never further from what was wanted than nothing at all would be, whatever its values
are, and error feedback converges (Karimireddy et al., Error Feedback Fixes SignSGD, 2019,
https://arxiv.org/abs/1901.09847).

Bound of both: a value is off by at most 1.01 of the larger of its group's largest magnitude and 2**-126, and the L2
norm of a group's error is at most 1.001 of the group's own (where its scale is above 2**-126; else nothing is sent).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from protocol.codecs_grouped import LARGEST_BF16, SMALLEST_NORMAL, GroupedCodec, require_finite
from protocol.errors import MalformedMessage
from protocol.specs import GRANULE

if TYPE_CHECKING:
    from torch import Tensor, device

_SAFE_NORMS = (1e-15, 1e15)
"""Between these a sum of squares in fp32 neither vanishes nor overflows."""
_GAUSSIAN_STEP = 0.9957
"""Of the four even levels that suit a Gaussian best: relative error 0.345; any four, 0.343 (Max, 1960)."""
_TERNARY_CUT = 0.612
"""Of the three levels that suit a Gaussian best: what is larger than this many standard deviations is sent."""
_TRITS = 17
"""In 27 bits, of which they need 26.94."""
_TABLED = 8
_TABLE_ROWS = 3**_TABLED


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedCodec(GroupedCodec):
    """A group's scale is fitted to the levels that its root mean square gives."""

    @property
    def highest_level(self) -> float:
        """How far from nothing a code lies at most, in scales: that product must be a number, too."""
        return 1.0

    @abstractmethod
    def _fit(self, unit_GN: Tensor, sizes_G: Tensor) -> Tensor:
        """[G]: scales that fit groups of root mean square 1 best."""

    def _scale(self, wanted_GN: Tensor, elements: int, scales_G: Tensor) -> Tensor:
        """[G, 1]: reciprocals of the scales, which are written; 0 for those that are 0."""
        import torch

        sizes_G = torch.full((len(scales_G),), self.group, dtype=torch.float32, device=wanted_GN.device)
        sizes_G[-1] -= wanted_GN.numel() - elements
        rms_G = _rms(wanted_GN, sizes_G)
        unit_GN = wanted_GN * _reciprocal(rms_G).unsqueeze(-1)
        scales_G.copy_(self._fit(unit_GN, sizes_G).mul_(rms_G).clamp_(max=LARGEST_BF16 / self.highest_level))
        scales_G[scales_G < SMALLEST_NORMAL] = 0.0
        return _reciprocal(scales_G.to(torch.float32)).unsqueeze(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoBitCodec(FittedCodec):
    """Four even levels, half a step and one and a half to either side; a step is the scale."""

    @property
    def highest_level(self) -> float:
        """Of the outer two."""
        return 1.5

    @property
    def bits_per_parameter(self) -> float:
        """A code's, and a share of the scale."""
        return 2 + 16 / self.group

    def code_bytes(self, elements: int) -> int:
        """Groups are filled up."""
        return self._groups(elements) * self.group // 4

    def _fit(self, unit_GN: Tensor, sizes_G: Tensor) -> Tensor:
        levels_GN = (unit_GN * (1 / _GAUSSIAN_STEP)).floor_().clamp_(-2, 1).add_(0.5)
        fitted_G = unit_GN.mul_(levels_GN).sum(-1)
        filled_G = 0.25 * (self.group - sizes_G)
        return fitted_G.div_(levels_GN.square_().sum(-1).sub_(filled_G))

    def _pack(self, wanted_GN: Tensor, elements: int, scales_G: Tensor, codes: Tensor) -> None:
        import torch

        inverse_G1 = self._scale(wanted_GN, elements, scales_G)
        codes_GN = torch.mul(wanted_GN, inverse_G1).floor_().clamp_(-2, 1).add_(2)
        first, second, third, fourth = codes_GN.chunk(4, dim=-1)
        packed = first.add_(second, alpha=4).add_(third, alpha=16).add_(fourth, alpha=64).sub_(128)
        codes.view(torch.int8).view(packed.shape).copy_(packed)

    def _unpack(self, codes: Tensor, levels: Tensor) -> None:
        plain = codes ^ 128
        for place, quarter in enumerate(levels.view(-1, self.group).chunk(4, dim=-1)):
            quarter.copy_((plain >> 2 * place).bitwise_and_(3).view(quarter.shape))
        levels.sub_(1.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class TernaryCodec(FittedCodec):
    """Minus the scale, nothing, or the scale; 17 of them in 27 bits.

    A granule is written alone. Its values, filled up to 17 times a multiple of 16, are two runs of eights and one of
    single ones; word `w` holds the w-th eight of either and the w-th single one as A + 3**8 B + 3**16 C. Of the words
    come their low 16 bits, then their next 8, then their highest 3, those of eight words in three bytes.
    """

    @property
    def filled(self) -> int:
        """A word's worth at most is filled up, within its granule."""
        return 1

    @property
    def bits_per_parameter(self) -> float:
        """17 trits in 27 bits, what fills a granule up, and a share of the scale."""
        return 8 * self.code_bytes(GRANULE) / GRANULE + 16 / self.group

    def code_bytes(self, elements: int) -> int:
        """Of whole granules, and of what is left."""
        granules, rest = divmod(elements, GRANULE)
        return (granules * _words(GRANULE) + _words(rest)) * 27 // 8

    def _fit(self, unit_GN: Tensor, sizes_G: Tensor) -> Tensor:
        import torch

        del sizes_G
        sent_GN = torch.hardshrink(unit_GN.abs_(), _TERNARY_CUT)
        return sent_GN.sum(-1).div_(sent_GN.sign_().sum(-1).clamp_(min=1))

    def _pack(self, wanted_GN: Tensor, elements: int, scales_G: Tensor, codes: Tensor) -> None:
        import torch

        inverse_G1 = self._scale(wanted_GN, elements, scales_G)
        trits_GN = torch.mul(wanted_GN, inverse_G1).round_().clamp_(-1, 1)
        rows, words = _rows_and_words(elements)
        trits_RT = torch.zeros(rows, words * _TRITS, device=wanted_GN.device)
        trits_RT[:, : elements // rows] = trits_GN.view(-1)[:elements].view(rows, -1)
        trits_RT.add_(1)
        tabled = 2 * _TABLED * words
        eights = trits_RT[:, :tabled].reshape(-1, _TABLED) @ _places(codes.device)  # exact: under 3**4 in either column
        halves = eights[:, 1].mul(81).add_(eights[:, 0]).to(torch.int32).view(rows, 2, words)
        last = trits_RT[:, tabled:].to(torch.int32)
        words_RW = last.mul_(_TABLE_ROWS).add_(halves[:, 1]).mul_(_TABLE_ROWS).add_(halves[:, 0])
        _write_words(words_RW, codes.view(rows, -1))

    def _unpack(self, codes: Tensor, levels: Tensor) -> None:
        import torch

        rows, words = _rows_and_words_of(len(codes))
        words_RW = _read_words(codes.view(rows, -1), words)
        if bool(words_RW.amax() >= 3**_TRITS):
            raise MalformedMessage(f"ternary: a word that stands for no {_TRITS} values")
        last = torch.div(words_RW, _TABLE_ROWS**2, rounding_mode="floor")
        words_RW.sub_(last, alpha=_TABLE_ROWS**2)
        second = torch.div(words_RW, _TABLE_ROWS, rounding_mode="floor")
        words_RW.sub_(second, alpha=_TABLE_ROWS)
        tabled = torch.stack((words_RW, second), dim=1).view(-1)
        trits = _table(codes.device).index_select(0, tabled).view(torch.int8).view(rows, -1)
        levels_RN = levels.view(rows, -1)
        count = min(trits.shape[1], levels_RN.shape[1])
        levels_RN[:, :count].copy_(trits[:, :count])
        levels_RN[:, count:].copy_(last.sub_(1)[:, : levels_RN.shape[1] - count])


def _rms(wanted_GN: Tensor, sizes_G: Tensor) -> Tensor:
    """[G]: root mean squares, in fp64 where fp32 might not do. MalformedMessage where a value is not finite."""
    import torch

    norm_G: Tensor = torch.linalg.vector_norm(wanted_GN, dim=-1)
    low, high = _SAFE_NORMS
    if bool(((norm_G > low) & (norm_G < high)).all()):
        return norm_G.div_(sizes_G.sqrt())
    norm_G = torch.linalg.vector_norm(wanted_GN, dim=-1, dtype=torch.float64).div_(sizes_G.sqrt())
    require_finite(norm_G)
    return norm_G.to(torch.float32)


def _reciprocal(scales_G: Tensor) -> Tensor:
    """0 where a scale is too small to have one."""
    import torch

    return torch.where(scales_G < SMALLEST_NORMAL, 0.0, scales_G.clamp(min=SMALLEST_NORMAL).reciprocal_())


def _words(elements: int) -> int:
    """For `elements` trits: a multiple of 16, so that their bytes are even."""
    return 16 * -(-elements // (16 * _TRITS))


def _rows_and_words(elements: int) -> tuple[int, int]:
    """Granules, and words in each: of whole granules, or of less than one."""
    if elements % GRANULE == 0:
        return elements // GRANULE, _words(GRANULE)
    return 1, _words(elements)


def _rows_and_words_of(code_bytes: int) -> tuple[int, int]:
    """The same by their bytes."""
    words, granule = code_bytes * 8 // 27, _words(GRANULE)
    return (words // granule, granule) if words % granule == 0 else (1, words)


def _write_words(words_RW: Tensor, bytes_RB: Tensor) -> None:
    """27 bits of each into 27 / 8 bytes of each."""
    import torch

    words = words_RW.shape[1]
    bytes_RB[:, : 2 * words].view(torch.int16).copy_(words_RW)
    bytes_RB[:, 2 * words : 3 * words].copy_(words_RW >> 16)
    top = (words_RW >> 24).view(len(words_RW), 8, -1)
    places = torch.arange(0, 24, 3, dtype=torch.int32, device=top.device)
    whole = (top << places.unsqueeze(-1)).sum(1, dtype=torch.int32)
    for place, plane in enumerate(bytes_RB[:, 3 * words :].chunk(3, dim=1)):
        plane.copy_(whole >> 8 * place)


def _read_words(bytes_RB: Tensor, words: int) -> Tensor:
    """[R, W]: what `_write_words` wrote, in int32."""
    import torch

    low = bytes_RB[:, : 2 * words].view(torch.int16).to(torch.int32).bitwise_and_(0xFFFF)
    low.bitwise_or_(bytes_RB[:, 2 * words : 3 * words].to(torch.int32) << 16)
    first, second, third = bytes_RB[:, 3 * words :].to(torch.int32).chunk(3, dim=1)
    whole = first | second << 8 | third << 16
    places = torch.arange(0, 24, 3, dtype=torch.int32, device=whole.device)
    top = (whole.unsqueeze(1) >> places.unsqueeze(-1)).bitwise_and_(7)
    return low.bitwise_or_(top.view(len(low), -1) << 24)


@cache
def _places(where: device) -> Tensor:
    """[8, 2]: what each of eight trits counts, for the first four and the last four."""
    import torch

    places = torch.zeros(_TABLED, 2, device=where)
    for place in range(4):
        places[place, 0] = places[4 + place, 1] = 3**place
    return places


@cache
def _table(where: device) -> Tensor:
    """[3**8]: the eight trits that a number stands for, each a signed byte, together one int64."""
    import torch

    rows = torch.arange(_TABLE_ROWS).unsqueeze(-1)
    places = torch.tensor([3**place for place in range(_TABLED)])
    trits = torch.div(rows, places, rounding_mode="floor").remainder_(3).sub_(1).to(torch.int8)
    return trits.view(torch.int64).view(-1).to(where)


TWO_BIT = TwoBitCodec(name="two_bit", group=256, has_state=True)
TERNARY = TernaryCodec(name="ternary", group=2048, has_state=True)

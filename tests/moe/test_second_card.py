"""A second card for frozen experts: which layers lie there, in how many bytes, and that nothing else is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from moe.config import config_from_json
from moe.families import FAMILIES
from moe.families.micro import micro_values
from moe.frozen import frozen_layers, on_second
from moe.frozen_bytes import frozen_bytes
from moe.kept import KeptForm
from moe.layout import Layout, layout
from moe.planner import Burden, Memory, planned
from moe.published import published
from moe.second_card import SecondCard
from moe.shard import build_shard
from moe.stand_ins import HOST, MAPPED, StandIns
from protocol.recipe import Recipe
from tests.moe.conftest import fresh

HELD = (0, 1, 3)


@pytest.fixture
def cut() -> Layout:
    return layout(config_from_json({**micro_values(FAMILIES["olmoe"]), "num_hidden_layers": 4}), "frozen")


def layer_bytes(cut: Layout, stand_ins: StandIns) -> list[int]:
    form = KeptForm(codec=stand_ins.codec, dtype=torch.float32)
    return [form.layer_bytes(list(specs.values())) for specs in frozen_layers(cut, HELD).values()]


def split(cut: Layout, dtype: str, layers: int, device: str = "cpu") -> StandIns:
    """As much memory as so many layers take, and a byte less than one more does."""
    plain = StandIns(dtype=dtype, place=HOST)
    sizes = layer_bytes(cut, plain)
    work = frozen_bytes(cut, len(HELD), replace(plain, place=MAPPED)).device  # olmoe has no biases
    return replace(plain, second=SecondCard(device=device, memory_bytes=work + sum(sizes[: layers + 1]) - 1))


@pytest.mark.parametrize("dtype", ["compute", "int4"])
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_where_layers_lie_changes_no_bit(cut: Layout, tokens: Any, dtype: str, layers: int) -> None:
    blocks = fresh(cut)
    found = []
    for stand_ins in (StandIns(dtype=dtype, place=HOST), split(cut, dtype, layers)):
        shard = build_shard(cut, HELD, blocks, stand_ins=stand_ins)
        for _ in range(2):
            loss = shard.loss(tokens).total
            loss.backward()
            shard.let_go()
            shard.load(blocks)
        found.append((float(loss.detach()), [one.grad for one in shard.parameters()]))
    assert found[0][0] == found[1][0]
    pairs = zip(found[0][1], found[1][1], strict=True)
    assert all(one is not None and other is not None and torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_first_layers_lie_on_the_second_device_as_planned(cut: Layout, layers: int) -> None:
    """On one without memory: what is decoded there stays there, and the other layers are where they were."""
    stand_ins = split(cut, "int4", layers, "meta")
    shard = build_shard(cut, HELD, fresh(cut), stand_ins=stand_ins)
    apart: Any = shard._apart
    paths = list(frozen_layers(cut, HELD))
    where = [{one.values(0, 1).device.type for one in apart.matrices(path).values()} for path in paths]
    assert where == [{"meta"}] * layers + [{"cpu"}] * (len(paths) - layers)
    planned_bytes = frozen_bytes(cut, len(HELD), stand_ins, on_cpu=False)
    first = apart._store._first._layers
    kept = sum(next(iter(pieces.values()))[0].untyped_storage().nbytes() for pieces in first)
    assert kept + apart._workspaces[0].nbytes == planned_bytes.second
    assert planned_bytes.second <= stand_ins.second.memory_bytes  # type: ignore[union-attr]
    without = frozen_bytes(cut, len(HELD), replace(stand_ins, second=None), on_cpu=False)
    assert planned_bytes.host == without.host - sum(layer_bytes(cut, stand_ins)[:layers])


def test_rows_go_to_the_device_of_their_experts_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a product whose matrices are elsewhere, nothing but rows, ends and what comes out moves."""
    import moe.piecewise as piecewise

    asked: list[tuple[str, str]] = []

    def elsewhere(rows: torch.Tensor, right: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
        asked.append((rows.device.type, offs.device.type))
        return torch.zeros(rows.shape[0], right.shape[-1])

    class Far:
        count, at_once = 2, 2

        def expect(self, pieces: Sequence[tuple[int, int]]) -> None:
            assert pieces

        def values(self, first: int, last: int) -> torch.Tensor:
            return torch.empty(last - first, 5, 3, device="meta")

    monkeypatch.setattr(piecewise, "grouped_mm", elsewhere)
    held, ends = torch.zeros(1, 5, 3), torch.tensor([2, 4, 6], dtype=torch.int32)
    out = piecewise._product(torch.ones(6, 3), held, Far(), ends, (2, 4, 6), turned=True)
    assert asked == [("cpu", "cpu"), ("meta", "meta")]
    assert out.device.type == "cpu"


def test_a_second_card_stands_for_main_memory_that_a_machine_has_not() -> None:
    """Without it the other columns would be read from their files in every step."""
    cut = layout(published("Qwen3-30B-A3B"), "frozen")
    recipe = Recipe(masters="bf16", moments="compact", frozen_dtype="int4")
    load = Burden(layout=cut, recipe=recipe, sequence_length=512, compute_bytes=2, on_gpu=True, codec="int4")
    memory = Memory(12 << 30, 12 << 30)
    alone = planned(load, memory, (1,))
    assert alone.schedule.place == MAPPED
    two = replace(load, second=SecondCard(device="cuda:1", memory_bytes=12 << 30))
    found = planned(two, memory, (1,))
    assert found.fits
    assert found.columns == alone.columns
    assert found.schedule.place == HOST
    assert found.needed.host < 9 << 30
    (line,) = (line for line in found.lines if line.where == "second")
    assert 11 << 30 < line.memory_bytes <= 12 << 30
    assert "of other columns on the second card" in found.reason


def test_nothing_lies_there_where_the_schedule_says_so(cut: Layout) -> None:
    card = SecondCard(device="meta", memory_bytes=1 << 40)
    for place in ("decoded", "device", "mapped"):
        stand_ins = StandIns(dtype="int4", place=place, second=card)
        layers = [list(specs.values()) for specs in frozen_layers(cut, HELD).values()]
        assert on_second(layers, KeptForm(codec=stand_ins.codec, dtype=torch.float32), stand_ins) == 0
        assert frozen_bytes(cut, len(HELD), stand_ins, on_cpu=False).second == 0

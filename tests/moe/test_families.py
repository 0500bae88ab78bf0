"""What every family must do, by its row alone; and a family that nobody has does it with one row more."""

from __future__ import annotations

import json
import math
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import moe
from moe.blocks import merge_blocks, slice_blocks
from moe.config import config_from_json, config_to_json
from moe.export import export_checkpoint, import_checkpoint
from moe.families import FAMILIES, Family
from moe.full import full_model
from moe.layout import Layout
from moe.skeleton import model_class
from protocol.residency import ABSENT
from tests.moe.conftest import fresh


def test_its_configuration_means_what_it_says(family: Family, values: dict[str, Any]) -> None:
    config = config_from_json(json.loads(json.dumps(values)))
    assert config_to_json(config) == values
    assert model_class(family.model_type).__name__ == family.class_name
    for key, spelt in family.spelt.items():
        assert attrgetter(spelt)(config) == values[key]
    assert set(family.spelt) <= set(family.keys)
    assert family.expert_width in family.keys
    assert family.balance == "none" or family.balance_coefficient(values) == 0.3


def test_every_tensor_is_in_one_block_and_columns_are_its_experts(family: Family, cut: Layout) -> None:
    model = model_class(family.model_type)(config_from_json(cut.config_json))
    state = model.state_dict()
    shapes = {name: tuple(state[name].shape) for name in state.keys() - {alias for alias, _ in cut.tied}}
    trunk, column = {spec.name: spec.shape for spec in cut.trunk}, {spec.name: spec.shape for spec in cut.column}
    assert not trunk.keys() & column.keys()
    assert trunk.keys() | column.keys() == shapes.keys()
    assert all(shapes[name] == shape for name, shape in trunk.items())
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert all(cut.columns * math.prod(shape) == sizes[name] for name, shape in column.items())
    assert cut.parameters == sum(sizes.values())
    named = (*family.experts, *family.router, *filter(None, [family.selection_bias]))
    assert [one.suffix for one in named if not any(name.endswith(one.suffix) for name in shapes)] == []
    # What counts experts and is in no column is the router's, in a shard that has all of its rows.
    counting = {name for name, shape in shapes.items() if cut.columns in shape}
    assert {name for name in counting & trunk.keys() if not family.is_router(name)} == set()
    assert (counting & trunk.keys() == set()) is (cut.residency == ABSENT)


def test_slices_merge_to_the_same_bits(family: Family, cut: Layout) -> None:
    torch.manual_seed(1)
    model = model_class(family.model_type)(config_from_json(cut.config_json))
    state = {
        name: torch.randn(tensor.shape) if tensor.is_floating_point() else torch.randint(0, 6, tensor.shape)
        for name, tensor in model.state_dict().items()
    }
    merged = merge_blocks(slice_blocks(state, cut), cut)
    assert merged.keys() == state.keys()
    assert all(torch.equal(merged[name], state[name]) for name in state)


def test_export_and_import_are_a_round_trip_through_transformers(frozen: Layout, tmp_path: Path, tokens: Any) -> None:
    blocks = fresh(frozen)
    export_checkpoint(blocks, frozen, tmp_path / "checkpoint")
    config, back = import_checkpoint(tmp_path / "checkpoint")
    assert config_to_json(config) == frozen.config_json
    assert all(torch.equal(back[b][name], blocks[b][name]) for b in blocks for name in blocks[b])
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "checkpoint", dtype=torch.float32, output_loading_info=True
    )
    opened, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        theirs = opened(input_ids=tokens).logits
        assert torch.equal(theirs, full_model(frozen, blocks)(input_ids=tokens).logits)


def test_the_families_are_named_in_the_table_alone() -> None:
    """And where the shape of one published model is meant."""
    root = Path(moe.__file__).parents[1]
    allowed = {root / "moe" / "presets.py", root / "moe" / "published.py", *(root / "moe" / "families").glob("*.py")}
    rooms = ("aggregation", "barnraise", "benchmarks", "coordinator", "moe", "protocol", "simulator", "worker")
    found = [
        f"{path.relative_to(root)}: {name}"
        for room in rooms
        for path in (root / room).rglob("*.py")
        if path not in allowed
        for name in FAMILIES
        if name.replace("_", "") in path.read_text().lower().replace("_", "").replace("olmoe-7b", "")
    ]
    assert not found, "a family's name belongs in moe/families alone, prose included"

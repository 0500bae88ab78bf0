"""Each family as people have its models, and as strangers would like to have them; and the page that says so."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from moe.blocks import merge_blocks
from moe.config import config_from_json, config_to_json
from moe.export import import_checkpoint
from moe.families import FAMILIES, Family, reference, why_not
from moe.families.micro import micro_values
from moe.families.not_yet import NOT_YET
from moe.families.variants import VARIANTS, variant
from moe.full import full_model
from moe.layout import layout
from moe.skeleton import model_class
from protocol.errors import ConfigError, MalformedMessage
from protocol.residency import FROZEN
from tests.moe.conftest import fresh

HOSTILE: list[Any] = [10**12, -(10**12), math.nan, "os.system", {"auto_map": "x.y"}, ["x"] * 300, True, None, 0.5]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_exact_or_refused_by_name(family: Family, name: str, tokens: torch.Tensor) -> None:
    try:
        values = variant(family, name)
    except ConfigError:
        return  # the page has the words
    cut = layout(config_from_json(values), FROZEN)
    blocks = fresh(cut)
    theirs = model_class(family.model_type)(config_from_json(values))
    theirs.load_state_dict(merge_blocks(blocks, cut))
    theirs.train(False)
    with torch.no_grad():
        expected = theirs(input_ids=tokens, use_cache=False).logits
        assert torch.equal(full_model(cut, blocks)(input_ids=tokens, use_cache=False).logits, expected)
    if name == "tied":
        assert cut.tied
    plain = micro_values(family)
    if name in ("linear", "yarn") and "rope_theta" in plain:
        other = full_model(layout(config_from_json(plain), FROZEN), blocks)(input_ids=tokens, use_cache=False).logits
        assert not torch.equal(other, expected)


def test_a_checkpoint_in_bf16_and_many_files_is_read_exactly(family: Family, tmp_path: Path) -> None:
    torch.manual_seed(2)
    model: Any = model_class(family.model_type)(config_from_json(micro_values(family)))
    model.to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(tmp_path / "given", max_shard_size="20KB")
    config, blocks = import_checkpoint(tmp_path / "given")
    merged = merge_blocks(blocks, layout(config, FROZEN))
    state = model.state_dict()
    assert merged.keys() == state.keys()
    assert all(torch.equal(merged[name], state[name].to(merged[name].dtype)) for name in state)


def test_no_value_of_a_stranger_is_taken_for_another(family: Family) -> None:
    values = micro_values(family)
    refused = 0
    for key in values:
        for hostile in HOSTILE:
            given = {**values, key: hostile}
            try:
                built = config_from_json(given)
            except MalformedMessage:
                refused += 1
                continue
            assert config_to_json(built) == given, (key, hostile)
    assert refused > 0.75 * len(values) * len(HOSTILE)
    with pytest.raises(MalformedMessage, match="unknown keys"):
        config_from_json({**values, "auto_map": {"AutoModel": "evil.Model"}})


def test_rotary_embeddings_of_strangers_are_closed(family: Family) -> None:
    values = {key: value for key, value in micro_values(family).items() if not key.startswith("rope_")}
    good = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 16}
    bad: list[Any] = [
        7, [], {}, {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, {**good, "factor": math.inf},
        {**good, "code": "x.py"}, {"/etc/passwd": good}, {"full_attention": {**good, "rope_type": ["yarn"]}},
        {"rope_type": "yarn", "rope_theta": 1e4}, {"rope_type": "default", "rope_theta": 1e4, "mscale": "1"},
    ]  # fmt: skip
    for rope in bad:
        with pytest.raises(MalformedMessage):
            config_from_json({**values, "rope_parameters": rope})


def test_what_has_no_row_is_refused_with_its_reason() -> None:
    assert not NOT_YET.keys() & FAMILIES.keys()
    for model_type, reason in NOT_YET.items():
        with pytest.raises(ConfigError, match=f"{model_type}.*{reason[:30]}"):
            model_class(model_type)
    assert "qwen3_5_moe_text" in why_not("qwen3_5_moe")
    assert len(FAMILIES) + len(NOT_YET) == 57


def test_the_page_is_what_the_table_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = reference.page()
    monkeypatch.setattr(reference, "page", lambda: made)
    assert reference.main(["--check"]) == 0
    monkeypatch.setattr(reference, "PAGE", tmp_path / "families.md")
    (tmp_path / "families.md").write_text(made + "|\n", "utf-8")
    assert reference.main(["--check"]) == 1

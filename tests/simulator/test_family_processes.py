"""Families that differ most, by real processes: two workers, two rounds, exported, and opened by transformers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from barnraise.cli.app import run
from moe.config import config_from_json
from moe.export import export_checkpoint
from moe.families import FAMILIES
from moe.families.micro import micro_values
from moe.full import initial_blocks
from moe.layout import layout
from protocol.residency import FROZEN

UNLIKE = {
    "minimax_m2": "a selection bias",
    "glm4_moe": "shared experts, and dense layers first",
    "gpt_oss": "biases in its experts, transposed and interleaved",
    "aria_text": "transposed experts",
    "deepseek_v3": "groups of experts",
    "granitemoehybrid": "state spaces beside attention",
}
SMALL = (
    "--workers", "2", "--rounds", "2", "--seed", "1", "--sequence-length", "16", "--set", "inner.inner_steps=2",
    "--set", "inner.batch_sequences=2", "--set", "inner.warmup_steps=0",
)  # fmt: skip


@pytest.mark.soak
@pytest.mark.parametrize("name", UNLIKE)
def test_a_family_is_trained_by_real_processes_and_opened_by_transformers(
    name: str, corpus: Path, tmp_path: Path
) -> None:
    values = micro_values(FAMILIES[name])
    cut = layout(config_from_json(values), FROZEN)
    before = tmp_path / "before"
    export_checkpoint(initial_blocks(config_from_json(values), cut, 1), cut, before)
    arguments = ["simulate", *SMALL, "--data", str(corpus), "--checkpoint", str(before), "--out", str(tmp_path / "out")]
    assert run(arguments) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rounds"][-1]["version"] == 2, report["rounds"]
    opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "checkpoint", output_loading_info=True)
    after, told = opened
    assert not any(told.values()), told
    model: Any = AutoModelForCausalLM.from_pretrained(before)
    changed = {key for key, tensor in after.state_dict().items() if not torch.equal(tensor, model.state_dict()[key])}
    assert any("experts" in key for key in changed), "experts moved"
    assert torch.isfinite(after(input_ids=torch.arange(16)[None], use_cache=False).logits).all()

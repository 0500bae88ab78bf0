from __future__ import annotations

import math

import pytest
import torch

from moe.full import evaluate_loss, full_model, initial_blocks, load_blocks
from moe.layout import layout
from protocol.errors import LocalError
from protocol.ids import TRUNK, column_block
from protocol.residency import ABSENT, FROZEN


def test_initial_blocks_depend_on_the_seed_alone(config, residency):
    cut = layout(config, residency)
    torch.manual_seed(1)
    one = initial_blocks(config, cut, 11)
    torch.manual_seed(2)
    again, other = initial_blocks(config, cut, 11), initial_blocks(config, cut, 12)
    for block in cut.blocks:
        for name, tensor in one[block].items():
            assert torch.equal(tensor, again[block][name])
            assert name.endswith("norm.weight") or not torch.equal(tensor, other[block][name])


def test_initial_values_are_distributed_as_transformers_would(config):
    cut = layout(config, FROZEN)
    blocks = initial_blocks(config, cut, 1)
    trunk = blocks[TRUNK]
    assert not trunk["model.embed_tokens.weight"][config.pad_token_id].any()
    assert all((tensor == 1).all() for name, tensor in trunk.items() if name.endswith("norm.weight"))
    values = torch.cat([t.flatten() for name, t in trunk.items() if name.endswith("proj.weight")])
    assert values.std().item() == pytest.approx(config.initializer_range, rel=0.05)
    name = cut.column[0].name
    assert not torch.equal(blocks[column_block(0)][name], blocks[column_block(1)][name])


def test_loss_is_the_mean_over_sequences_with_its_standard_error(config, tokens):
    cut = layout(config, FROZEN)
    model = full_model(cut, initial_blocks(config, cut, 1))
    mean, error = evaluate_loss(model, tokens, 3)
    with torch.no_grad():
        log_probability = model(input_ids=tokens[:, :-1]).logits.log_softmax(-1)
    each = -log_probability.gather(-1, tokens[:, 1:, None]).mean(dim=(1, 2))
    assert mean == pytest.approx(each.mean().item(), rel=1e-5)
    assert error == pytest.approx(each.std().item() / 2, rel=1e-3)
    assert evaluate_loss(model, tokens, 100)[0] == pytest.approx(mean, rel=1e-6)
    assert math.isnan(evaluate_loss(model, tokens[:1], 1)[1])


def test_fresh_models_know_nothing(config, tokens):
    config.initializer_range = 0.02
    cut = layout(config, FROZEN)
    mean, _ = evaluate_loss(full_model(cut, initial_blocks(config, cut, 1)), tokens, 4)
    assert mean == pytest.approx(math.log(config.vocab_size), abs=0.15)


def test_both_residencies_evaluate_the_same_model(config, tokens):
    losses = []
    for residency in (FROZEN, ABSENT):
        cut = layout(config, residency)
        model = full_model(layout(config, FROZEN), initial_blocks(config, layout(config, FROZEN), 1))
        from moe.blocks import slice_blocks

        losses.append(evaluate_loss(full_model(cut, slice_blocks(model.state_dict(), cut)), tokens, 4))
    assert losses[0] == losses[1]


def test_loading_some_blocks_keeps_the_others(config, residency, tokens):
    cut = layout(config, residency)
    one, other = initial_blocks(config, cut, 1), initial_blocks(config, cut, 2)
    model = full_model(cut, one)
    changed = {TRUNK: other[TRUNK], column_block(2): other[column_block(2)]}
    load_blocks(model, cut, changed)
    assert evaluate_loss(model, tokens, 4) == evaluate_loss(full_model(cut, {**one, **changed}), tokens, 4)
    load_blocks(model, cut, one)
    assert evaluate_loss(model, tokens, 4) == evaluate_loss(full_model(cut, one), tokens, 4)


def test_a_broken_model_gives_a_loss_that_is_not_finite(config, tokens):
    cut = layout(config, FROZEN)
    blocks = initial_blocks(config, cut, 1)
    blocks[TRUNK]["model.norm.weight"].fill_(math.nan)
    assert not math.isfinite(evaluate_loss(full_model(cut, blocks), tokens, 4)[0])


def test_evaluating_nothing_is_our_bug(config, tokens):
    cut = layout(config, FROZEN)
    model = full_model(cut, initial_blocks(config, cut, 1))
    with pytest.raises(LocalError, match="at least one sequence"):
        evaluate_loss(model, tokens[:0], 4)

"""Each illness that is planted is found, at its place and nowhere else; a healthy model has none of them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from moe.blocks import slice_blocks
from moe.findings import ExpertHealth
from moe.full import evaluate_loss, full_model, initial_blocks, sequence_losses
from moe.health import DEAD_LOAD, column_sets, examine
from moe.layout import layout
from moe.routing import RouterTap, routers
from moe.shard import build_shard
from protocol.errors import ConfigError, LocalError
from protocol.residency import ABSENT, FROZEN


@pytest.fixture
def model(config):
    # Well-spread input, so that a router without training spreads its tokens too.
    config.initializer_range = 0.3
    cut = layout(config, FROZEN)
    return full_model(cut, initial_blocks(config, cut, 1))


@pytest.fixture
def many():
    """Enough tokens that no healthy expert is overlooked."""
    return torch.randint(0, 256, (24, 17), generator=torch.Generator().manual_seed(3))


def experts_of(model, layer):
    return model.get_submodule(f"model.layers.{layer}.mlp.experts")


def plain(health: ExpertHealth) -> dict[str, Any]:
    return json.loads(json.dumps(health.as_dict(), allow_nan=False))


def test_a_healthy_model_has_no_findings(model, many):
    health = examine(model, many, batch=8)
    assert health.dead == ()
    assert health.duplicates == ()
    assert DEAD_LOAD < health.load_range[0] < 1 < health.load_range[1]
    assert abs(health.largest_cosine) < 6 * health.random_cosine
    assert all(0 < layer.token_entropy < 1 and 0.5 < layer.load_entropy <= 1 for layer in health.layers)


def test_every_token_is_counted_once_for_each_of_its_experts(model, config, many):
    health = examine(model, many, batch=7)
    experts, top_k = config.num_experts, config.num_experts_per_tok
    assert health.tokens == 24 * 16
    assert [layer.layer for layer in health.layers] == ([0, 2] if config.model_type == "qwen3_moe" else [0, 1])
    for layer in health.layers:
        assert sum(layer.routed) == 24 * 16 * top_k
        assert layer.load == pytest.approx([count * experts / (24 * 16 * top_k) for count in layer.routed])
    assert sum(health.column_load) == pytest.approx(experts)


def test_counts_are_those_of_the_logits_that_transformers_gives(model, config, many):
    health = examine(model, many, batch=24)
    with torch.no_grad():
        logits = model(input_ids=many[:, :-1], output_router_logits=True).router_logits
    for layer, logits_SE in zip(health.layers, logits, strict=True):
        chosen = logits_SE.topk(config.num_experts_per_tok).indices
        assert layer.routed == tuple(torch.bincount(chosen.flatten(), minlength=config.num_experts).tolist())
        entropy = torch.distributions.Categorical(logits=logits_SE.double()).entropy().mean()
        assert layer.token_entropy == pytest.approx(float(entropy) / math.log(config.num_experts), rel=1e-5)


def test_the_loss_is_that_of_validation_whatever_the_batch(model, many):
    expected = evaluate_loss(model, many, 24)
    for batch in (5, 24, 100):
        health = examine(model, many, batch=batch, column_sets=column_sets(4, 3))
        assert (health.loss, health.loss_se) == pytest.approx(expected, rel=1e-6)


def test_a_planted_dead_expert_is_found(model, many):
    last = list(routers(model))[-1]
    with torch.no_grad():
        # One direction of the stream is the same for every token and nothing writes into it: a bias for one row.
        model.get_submodule("model.embed_tokens").weight[:, 0] = 0.3
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj", "down_proj.weight")):
                weight[..., 0, :] = 0.0
        routers(model)[last].get_parameter("weight")[2, 0] = -1000.0
    health = examine(model, many, batch=8)
    assert [(one.layer, one.column, one.load) for one in health.dead] == [(last, 2, 0.0)]
    assert health.layers[-1].routed[2] == 0
    assert health.layers[0].routed[2] > 0


def test_planted_duplicates_are_found_in_their_layer(model, many):
    layer = list(routers(model))[-1]
    with torch.no_grad():
        for projection in ("gate_up_proj", "down_proj"):
            weights = experts_of(model, layer).get_parameter(projection)
            weights[3] = 2.0 * weights[1] + 0.1 * weights[1].std() * torch.randn(weights[1].shape)
    (found,) = examine(model, many[:2], batch=8).duplicates
    assert (found.layer, found.columns) == (layer, (1, 3))
    assert 0.99 < found.cosine < 1.0


def test_experts_that_agree_in_one_projection_only_are_not_duplicates(model, many):
    with torch.no_grad():
        weights = experts_of(model, 0).get_parameter("down_proj")
        weights[3] = weights[1]
    health = examine(model, many[:2], batch=8)
    assert health.duplicates == ()
    assert 0.1 < health.largest_cosine < 0.9


def test_a_router_that_does_not_choose_has_entropy_one(model, many):
    with torch.no_grad():
        for router in routers(model).values():
            router.get_parameter("weight").zero_()
    for layer in examine(model, many[:4], batch=4).layers:
        assert layer.token_entropy == pytest.approx(1.0)
        assert layer.load_entropy < 0.9  # all ties go to the same experts: the load shows what the entropy does not


def test_random_experts_are_as_alike_as_is_said(small_config, many):
    config = small_config("olmoe")
    config.num_experts, config.num_experts_per_tok = 40, 2
    cut = layout(config, FROZEN)
    health = examine(full_model(cut, initial_blocks(config, cut, 5)), many[:2], batch=2)
    cosines = [layer.cosine[a][b] for layer in health.layers for a in range(40) for b in range(a)]
    assert torch.tensor(cosines).pow(2).mean().sqrt().item() == pytest.approx(health.random_cosine, rel=0.06)


def test_nothing_drifts_where_all_columns_are_held(model, config, many):
    drift = examine(model, many, batch=8, column_sets=[range(config.num_experts)]).drift
    assert drift is not None
    assert drift.changed == 0.0
    assert drift.kl == pytest.approx(0.0, abs=1e-9)
    assert drift.loss_gap == pytest.approx(0.0, abs=1e-6)


def test_absent_routing_is_that_of_the_absent_shard(model, config, many):
    held = tuple(range(config.num_experts))[-config.num_experts_per_tok - 1 :]
    cut = layout(config, ABSENT)
    shard = build_shard(cut, held, slice_blocks(model.state_dict(), cut)).eval()
    with RouterTap(model, held=held) as tap:
        masked = sequence_losses(model, many, 24)
        ours = tap.take()
    with RouterTap(shard.module) as tap:
        smaller = sequence_losses(shard.module, many, 24)
        theirs = tap.take()
    assert torch.allclose(masked, smaller, rtol=1e-5)
    for layer, routing in ours.items():
        same = (torch.tensor(held)[theirs[layer].chosen] == routing.chosen).all(dim=-1)
        assert same.float().mean() > 0.99  # ties within rounding may fall the other way
    full = sequence_losses(model, many, 24)
    drift = examine(model, many, batch=9, column_sets=[held]).drift
    assert drift is not None
    assert drift.loss_gap == pytest.approx(float((smaller - full).mean()), abs=1e-5)


def test_drift_says_what_changed_and_where(model, config, many):
    held = tuple(range(config.num_experts_per_tok))
    drift = examine(model, many, batch=8, column_sets=[held]).drift
    assert drift is not None
    with RouterTap(model) as tap:
        sequence_losses(model, many, 24)
        first = next(iter(tap.take().values()))
    stayed = (first.chosen < config.num_experts_per_tok).all(dim=-1).double().mean()
    assert drift.changed_by_layer[0] == pytest.approx(1 - float(stayed))
    assert drift.kl_by_layer[0] == pytest.approx(0.0, abs=1e-9)  # the same input, renormalised alike
    assert drift.kl_by_layer[-1] > 1e-4  # the second sees what the first did


def test_drift_is_the_mean_over_the_column_sets(model, config, many):
    sets = column_sets(config.num_experts, config.num_experts_per_tok)
    drifts = [examine(model, many, batch=24, column_sets=[one]).drift for one in sets]
    both = examine(model, many, batch=24, column_sets=sets).drift
    assert both is not None
    for name in ("changed", "kl", "loss_gap"):
        assert getattr(both, name) == pytest.approx(sum(getattr(one, name) for one in drifts) / len(sets), abs=1e-7)


@pytest.mark.parametrize("experts", [1, 5, 8, 64])
@pytest.mark.parametrize("held", [1, 2, 3, 5, 100])
def test_column_sets_cover_all_columns_with_the_fewest_sets(experts, held):
    sets = column_sets(experts, held)
    assert len(sets) == math.ceil(experts / held)
    assert all(len(set(one)) == min(experts, held) and list(one) == sorted(one) for one in sets)
    assert set().union(*sets) == set(range(experts))


def test_without_renormalised_gates_there_is_no_drift_to_measure(small_config, many):
    config = small_config("olmoe")
    config.norm_topk_prob = False
    cut = layout(config, FROZEN)
    model = full_model(cut, initial_blocks(config, cut, 1))
    health = examine(model, many[:2], batch=2, column_sets=[(0, 1, 2)])
    assert health.drift is None
    assert "norm_topk_prob" in health.no_drift
    with pytest.raises(ConfigError, match="norm_topk_prob"):
        RouterTap(model, held=(0, 1, 2))


@pytest.mark.parametrize("held", [(), (0,), (0, 0, 1), (1, 2, 99), (-1, 0, 1)])
def test_sets_that_no_shard_could_hold_are_refused(small_config, many, held):
    config = small_config("olmoe")
    cut = layout(config, FROZEN)
    model = full_model(cut, initial_blocks(config, cut, 1))
    with pytest.raises(ConfigError, match="at least 3"):
        examine(model, many[:2], batch=2, column_sets=[held])


def test_the_model_is_left_as_it_was_even_by_a_failure(model, many):
    before = sequence_losses(model, many, 24)
    examine(model, many, batch=8, column_sets=column_sets(4, 3))
    with pytest.raises(ZeroDivisionError), RouterTap(model, held=(0, 1, 2)):
        _ = 1 / 0
    assert torch.equal(sequence_losses(model, many, 24), before)
    assert not any(router._forward_hooks for router in routers(model).values())


def test_a_broken_model_is_reported_in_plain_json(model, many):
    with torch.no_grad():
        experts_of(model, 0).get_parameter("down_proj")[0] = math.nan
    health = examine(model, many[:2], batch=2, column_sets=column_sets(4, 3))
    found = plain(health)
    assert found["loss"] is None
    assert math.isnan(health.largest_cosine)
    assert sum(found["layers"][0]["routed"]) == 2 * 16 * found["top_k"]


def test_plain_data_can_leave_the_matrices_out(model, many):
    health = examine(model, many[:2], batch=2, column_sets=column_sets(4, 3))
    assert "cosine" in plain(health)["layers"][0]
    assert "cosine" not in health.as_dict(matrices=False)["layers"][0]
    assert plain(health)["drift"]["column_sets"][0] == [0, 1, 2]


def test_a_tap_that_saw_nothing_says_so(model):
    with RouterTap(model) as tap, pytest.raises(LocalError, match="has not run"):
        tap.take()

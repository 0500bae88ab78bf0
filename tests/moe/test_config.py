from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GPT2Config

from moe.config import config_from_json, config_to_json
from moe.layout import layout
from moe.presets import PRESETS, preset
from protocol.errors import ConfigError, MalformedMessage

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def test_the_closed_form_survives_a_round_trip(config):
    values = config_to_json(config)
    again = config_from_json(json.loads(json.dumps(values)))
    assert config_to_json(again) == values
    assert layout(again, "frozen") == layout(config, "frozen")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_hostile_value_is_malformed_or_means_what_it_says(config, data):
    values = config_to_json(config)
    key = data.draw(st.sampled_from(sorted(values)))
    values[key] = data.draw(JSON)
    try:
        built = config_from_json(values)
    except MalformedMessage:
        return
    assert config_to_json(built) == values


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 10**12),
        ("hidden_size", True),
        ("hidden_size", 33),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 2.0),
        ("num_experts_per_tok", 99),
        ("num_key_value_heads", 3),
        ("rms_norm_eps", math.nan),
        ("rope_theta", math.inf),
        ("hidden_act", "os.system"),
        ("vocab_size", None),
        ("eos_token_id", 264),
        ("eos_token_id", [1, "2"]),
        ("model_type", "llama"),
        ("model_type", ["olmoe"]),
    ],
)
def test_values_out_of_range_are_malformed(config, key, value):
    with pytest.raises(MalformedMessage, match="model configuration"):
        config_from_json({**config_to_json(config), key: value})


def test_unknown_and_missing_keys_are_malformed(config):
    values = config_to_json(config)
    with pytest.raises(MalformedMessage, match="auto_map"):
        config_from_json({**values, "auto_map": {"AutoModel": "evil.Model"}})
    del values["vocab_size"]
    with pytest.raises(MalformedMessage, match="vocab_size"):
        config_from_json(values)


def test_a_model_without_any_expert_layer_is_malformed(small_config):
    values = config_to_json(small_config("qwen3_moe"))
    with pytest.raises(MalformedMessage, match="no layer has experts"):
        config_from_json({**values, "mlp_only_layers": [0, 1, 2]})


def test_what_the_closed_form_cannot_say_is_refused(config, small_config):
    config.attention_dropout = 0.1
    with pytest.raises(ConfigError, match="attention_dropout"):
        config_to_json(config)
    noisy = small_config("mixtral")
    noisy.router_jitter_noise = 0.1
    with pytest.raises(ConfigError, match="router_jitter_noise"):
        config_to_json(noisy)
    stretched = small_config("olmoe")
    stretched.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(ConfigError, match="longest sequence that was seen before"):
        config_to_json(stretched)
    with pytest.raises(ConfigError, match="gpt2"):
        config_to_json(GPT2Config())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_a_closed_form(name):
    values = config_to_json(preset(name))
    assert config_to_json(config_from_json(values)) == values


def test_presets_have_the_sizes_that_their_names_say():
    assert 500_000 <= layout(preset("tiny"), "absent").parameters <= 1_100_000
    assert 90e6 <= layout(preset("100m"), "absent").parameters <= 115e6


def test_another_vocabulary_takes_the_special_tokens_away():
    config = preset("tiny", vocab_size=1000)
    assert (config.vocab_size, config.eos_token_id, config.pad_token_id) == (1000, None, None)
    assert preset("tiny", vocab_size=264).eos_token_id == 258
    with pytest.raises(ConfigError, match="tiny, 100m"):
        preset("huge")

"""`barnraise plan`: one machine, all cards, all published models; from shapes alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from barnraise.cli.app import run
from barnraise.cli.plan import CARDS_GIB, MODELS_GIB
from moe.layout import layout
from moe.published import PUBLISHED, published
from protocol.residency import FROZEN

PARAMETERS = {
    "OLMoE-7B": 6.92e9,
    "Qwen3-30B-A3B": 30.5e9,
    "GPT-OSS-20B": 20.9e9,
    "DeepSeek-V2-Lite": 15.7e9,
    "GLM-4.5-Air": 106.9e9,
    "Mixtral-8x7B": 46.7e9,
}
"""As their cards say."""


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_a_published_model_has_as_many_parameters_as_its_card_says(name: str) -> None:
    assert layout(published(name), FROZEN).parameters == pytest.approx(PARAMETERS[name], rel=0.005)


def test_without_a_memory_every_card_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--preset", "100m", "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert [one["memory_bytes"] >> 30 for one in plans] == list(CARDS_GIB)
    assert all(one["columns"] == 16 and one["tokens_a_micro_batch"] == 512 and one["computed"] for one in plans)
    assert all(one["host_needed_bytes"] > 0 and one["reserve_bytes"] > 0 and one["mapped_bytes"] > 0 for one in plans)
    assert run(["plan", "--preset", "100m"]) == 0
    told = capsys.readouterr().out
    assert "multiplied in bf16, sent in int4, on a GPU; computed, not measured" in told
    assert "80.0 GiB" in told


def test_all_models_are_planned_and_what_would_make_one_fit_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--all", "--json"]) in (0, 1)
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert [(one["model"], one["memory_bytes"] >> 30) for one in plans] == [
        (name, gib) for name in PUBLISHED for gib in MODELS_GIB
    ]
    for one in plans:
        chosen = {rung["rung"]: rung["value"] for rung in one["rungs"]}
        assert (chosen["masters"], chosen["moments"]) == ("bf16", "compact"), "the lowest, unless another is asked for"
        if not one["fits"]:
            assert "would fit" in one["reason"] or "It would take" in one["reason"]
    by_model = {
        name: [one["columns"] if one["fits"] else 0 for one in plans if one["model"] == name] for name in PUBLISHED
    }
    assert all(columns == sorted(columns) for columns in by_model.values()), "a larger card never holds fewer"
    assert by_model["OLMoE-7B"][-1] >= 10


def test_host_memory_makes_it_a_gpu_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--preset", "100m", "--memory", "8GB", "--json"]
    assert run([*words, "--host-memory", "64GB"]) == 0
    enough = json.loads(capsys.readouterr().out)
    assert enough["columns"] == 16
    assert run([*words, "--host-memory", str(enough["host_needed_bytes"] - 1)]) == 0
    assert json.loads(capsys.readouterr().out)["columns"] < 16
    assert run(words) == 0
    assert json.loads(capsys.readouterr().out)["host_needed_bytes"] == 0, "a CPU has no memory beside its own"


def test_a_configuration_alone_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "config.json"
    place.write_text(json.dumps(PUBLISHED["OLMoE-7B"]))
    assert run(["plan", "--checkpoint", str(place), "--memory", "80GB", "--host-memory", "128GB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mapped_bytes"] == 4 * 6_919_161_856
    place.write_text("[]")
    assert run(["plan", "--checkpoint", str(place)]) == 2
    place.write_text('{"model_type": "llama"}')
    assert run(["plan", "--checkpoint", str(place)]) == 2
    assert "not supported" in capsys.readouterr().err

"""The rule that moves selection biases: from whole-batch counts, by layer, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moe.selection import Choices, layer_of, move_biases


def test_a_bias_moves_by_the_rate_towards_an_even_load() -> None:
    biases = [torch.zeros(4), torch.full((1, 4), 0.5)]
    move_biases(biases, torch.tensor([[8, 2, 2, 4], [3, 3, 3, 3]]), 0.001)
    torch.testing.assert_close(biases[0], torch.tensor([-0.001, 0.001, 0.001, 0.0]))
    assert torch.equal(biases[1], torch.full((1, 4), 0.5)), "an even load is even, whatever 12 / 4 rounds to"
    move_biases(biases, torch.tensor([[1, 1, 1, 0], [0, 0, 0, 1]]), 0.001)
    torch.testing.assert_close(biases[0], torch.tensor([-0.002, 0.0, 0.0, 0.001]))  # the mean is 0.75
    move_biases(biases, torch.tensor([[9, 0, 0, 0], [9, 0, 0, 0]]), 0.0)
    torch.testing.assert_close(biases[0], torch.tensor([-0.002, 0.0, 0.0, 0.001]))


class Experts(nn.Module):
    def forward(self, x: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        return x


def test_choices_are_counted_by_layer_however_they_are_passed() -> None:
    layers = [Experts(), Experts()]
    choices = Choices(layers, 4)
    x, gates = torch.zeros(3, 2), torch.ones(3, 2)
    layers[1](x, torch.tensor([[0, 1], [0, 1], [0, 3]]), gates)
    layers[0](x, top_k_index=torch.tensor([[2, 1], [2, 1], [2, 3]]), top_k_weights=gates)
    assert choices.take().tolist() == [[0, 2, 3, 1], [3, 2, 0, 1]]
    layers[0](x, torch.tensor([[0, 1]]), gates)
    layers[1](x, torch.tensor([[2, 3]]), gates)
    assert choices.take().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]], "of the last pass alone"


@pytest.mark.parametrize(
    ("name", "layer"),
    [("model.layers.3.mlp.gate", 3), ("backbone.layers.12.mixer.experts.up_proj", 12), ("blocks.x", -1), ("h.0", 0)],
)
def test_a_layer_is_the_number_in_a_name(name: str, layer: int) -> None:
    assert layer_of(name) == layer

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import silu
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate

from moe.experts import EXPERTS_IMPLEMENTATION, attach_experts, barnraise_frozen_experts_forward


class Experts(nn.Module):
    """As `use_experts_implementation` leaves a class that has no gate of its own."""

    _apply_gate = _default_apply_gate


def make(slots, held, *, activation=None):
    """Experts module of 4 experts with random weights, and those weights in expert order."""
    generator = torch.Generator().manual_seed(3)
    up = torch.randn(4, 16, 8, generator=generator) / 3
    down = torch.randn(4, 8, 8, generator=generator) / 3
    module: Any = Experts()
    module.act_fn = activation or nn.SiLU()
    order = torch.tensor(slots).argsort()
    attach_experts(module, slots, held, {"gate_up_proj": up[order].clone(), "down_proj": down[order].clone()})
    return module, up, down


def slow(x, index, weights, up, down, activation=silu):
    rows = []
    for token in range(x.shape[0]):
        total = torch.zeros_like(x[0])
        for choice in range(index.shape[1]):
            expert = index[token, choice]
            gate, value = (up[expert] @ x[token]).chunk(2)
            total = total + weights[token, choice] * (down[expert] @ (activation(gate) * value))
        rows.append(total)
    return torch.stack(rows)


def test_it_is_registered_under_its_name():
    assert ALL_EXPERTS_FUNCTIONS[EXPERTS_IMPLEMENTATION] is barnraise_frozen_experts_forward


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.GELU()])
@pytest.mark.parametrize(("slots", "held"), [([0, 1, 2, 3], 4), ([2, 0, 3, 1], 2), ([3, 2, 1, 0], 1)])
@pytest.mark.parametrize("index", [[[0, 1], [2, 3], [1, 0]], [[1, 3], [1, 3], [3, 1]], [[2], [2], [2]]])
def test_output_and_gradients_are_those_of_a_loop_over_tokens(slots, held, index, activation):
    module, up, down = make(slots, held, activation=activation)
    index = torch.tensor(index)
    x = torch.randn(3, 8, requires_grad=True)
    weights = torch.rand(3, index.shape[1], requires_grad=True)
    up.requires_grad_()
    down.requires_grad_()
    target = torch.randn(3, 8)
    (slow(x, index, weights, up, down, activation) * target).sum().backward()
    expected = [t.grad.clone() for t in (x, weights) if t.grad is not None]
    x.grad = weights.grad = None
    out = barnraise_frozen_experts_forward(module, x, index, weights)
    (out * target).sum().backward()
    torch.testing.assert_close([x.grad, weights.grad], expected)
    held_experts = torch.tensor(slots).argsort()[:held]
    torch.testing.assert_close(module.gate_up_proj.grad, up.grad[held_experts])
    torch.testing.assert_close(module.down_proj.grad, down.grad[held_experts])


def test_fp32_weights_are_shared_and_never_copied():
    module, *_ = make([1, 0, 3, 2], 2)
    assert module.gate_up_proj.data_ptr() == module.gate_up_proj_all.data_ptr()
    with torch.no_grad():
        module.gate_up_proj.zero_()
    assert not module.gate_up_proj_all[:2].any()


def test_no_frozen_tensor_is_a_parameter_or_in_the_state_dict():
    module, *_ = make([1, 0, 3, 2], 2)
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        "gate_up_proj": (2, 16, 8),
        "down_proj": (2, 8, 8),
    }
    assert set(module.state_dict()) == {"gate_up_proj", "down_proj"}

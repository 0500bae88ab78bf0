"""Held and frozen experts of every form that `transformers` has them in, against the classes' own loops."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moe.experts import EXPERTS_IMPLEMENTATION, attach_experts
from moe.undispatched import APART, attach_undispatched

E, H, WIDTH, T, K = 5, 16, 24, 12, 2
SIZES: dict[str, Any] = {"hidden_size": H, "num_experts": E, "num_local_experts": E, "n_routed_experts": E}


def module_of(family: str, name: str, **values: Any) -> Any:
    """The class's experts, of random weights. `values` by the names of its configuration."""
    home = import_module(f"transformers.models.{family}")
    known = vars(import_module(f"transformers.models.{family}.modeling_{family}"))
    kinds = [kind for key, kind in vars(import_module(f"{home.__name__}.configuration_{family}")).items()
             if key.endswith("Config") and key not in ("PreTrainedConfig", "PretrainedConfig")]  # fmt: skip
    config = max(kinds, key=lambda kind: sum(hasattr(kind, key) for key in values))()
    for key, value in {**SIZES, **values}.items():
        setattr(config, key, value)
    config._experts_implementation = "eager"
    module = known[name](config)
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.normal_(0.0, 0.5, generator=generator)
    return module


DISPATCHED: dict[str, Callable[[], Any]] = {
    "plain": lambda: module_of("qwen3_moe", "Qwen3MoeExperts", moe_intermediate_size=WIDTH, hidden_act="silu"),
    "another activation": lambda: module_of("gemma4", "Gemma4TextExperts", moe_intermediate_size=WIDTH),
    "silu as a function": lambda: module_of("lfm2_moe", "Lfm2MoeExperts", moe_intermediate_size=WIDTH),
    "clamped gate": lambda: module_of("deepseek_v4", "DeepseekV4Experts", intermediate_size=WIDTH, swiglu_limit=0.7),
    "gate of its own": lambda: module_of("inkling2", "Inkling2Experts", moe_intermediate_size=WIDTH),
    "interleaved, with biases": lambda: module_of("gpt_oss", "GptOssExperts", intermediate_size=WIDTH),
    "transposed": lambda: module_of("aria", "AriaExperts", moe_num_experts=E, intermediate_size=WIDTH),
    "ungated": lambda: module_of("nemotron_h", "NemotronHExperts", moe_intermediate_size=WIDTH, moe_latent_size=None),
}
SLOTS = [([0, 1, 2, 3, 4], 5), ([2, 0, 4, 1, 3], 2), ([4, 3, 2, 1, 0], 1)]


def rows_in_slot_order(tensor: Tensor, slots: list[int]) -> Tensor:
    return tensor.detach()[torch.tensor(slots).argsort()].clone()


def held_experts(slots: list[int], held: int) -> Tensor:
    return torch.tensor(slots).argsort()[:held]


def matrices_first(module: nn.Module) -> list[str]:
    names = [name for name, _ in module.named_parameters()]
    return sorted(names, key=lambda name: (name.endswith("bias"), name.startswith("down")))


@pytest.mark.parametrize(("slots", "held"), SLOTS)
@pytest.mark.parametrize("form", DISPATCHED)
def test_answers_and_held_gradients_are_the_classs_own(form: str, slots: list[int], held: int) -> None:
    whole, ours = DISPATCHED[form](), DISPATCHED[form]()
    names = matrices_first(ours)
    weights = {name: rows_in_slot_order(whole.get_parameter(name), slots) for name in names}
    attach_experts(ours, slots, held, weights)
    ours.config._experts_implementation = EXPERTS_IMPLEMENTATION
    generator = torch.Generator().manual_seed(2)
    chosen = torch.rand(T, E, generator=generator).topk(K).indices
    chosen[:, 0][chosen[:, 0] == 3] = 1  # somebody is chosen rarely
    target = torch.randn(T, H, generator=generator)
    answers, inputs = [], []
    for module in (whole, ours):
        x_TH = torch.randn(T, H, generator=torch.Generator().manual_seed(3), requires_grad=True)
        gates_TK = torch.rand(T, K, generator=torch.Generator().manual_seed(4), requires_grad=True)
        out_TH = module(x_TH, chosen, gates_TK)
        (out_TH * target).sum().backward()
        answers.append(out_TH)
        inputs.append((x_TH.grad, gates_TK.grad))
    torch.testing.assert_close(answers[1], answers[0])
    torch.testing.assert_close(inputs[1], inputs[0])
    for name in names:
        expected = whole.get_parameter(name).grad[held_experts(slots, held)]
        assert float(expected.abs().max()) > 0
        torch.testing.assert_close(ours.get_parameter(name).grad, expected, rtol=1e-4, atol=1e-5)
        assert not ours.get_buffer(f"{name}_all").requires_grad


@pytest.mark.parametrize("form", DISPATCHED)
def test_fp32_weights_are_shared_and_those_of_another_dtype_are_renewed(form: str) -> None:
    whole = DISPATCHED[form]()
    for dtype in (torch.float32, torch.bfloat16):
        ours = DISPATCHED[form]()
        names = matrices_first(ours)
        attach_experts(ours, SLOTS[1][0], 2, {n: whole.get_parameter(n).detach().to(dtype) for n in names})
        ours.config._experts_implementation = EXPERTS_IMPLEMENTATION
        with torch.no_grad():
            for name in names:
                ours.get_parameter(name).zero_()
            ours(torch.randn(T, H), torch.zeros(T, K, dtype=torch.int64), torch.ones(T, K))
        assert all(not ours.get_buffer(f"{name}_all")[:2].any() for name in names)
        assert all(ours.get_buffer(f"{name}_all")[2:].any() for name in names)


@pytest.mark.parametrize(("slots", "held"), SLOTS)
def test_apart_and_flattened(slots: list[int], held: int) -> None:
    values: dict[str, Any] = {"moe_num_experts": E, "ffn_hidden_size": WIDTH, "ffn_act_fn": {"name": "silu"}}
    whole, ours = (module_of("dbrx", "DbrxExperts", **values) for _ in range(2))
    names = ["mlp.w1", "mlp.v1", "mlp.w2"]
    weights = {n: rows_in_slot_order(whole.get_parameter(n).view(E, WIDTH, H), slots) for n in names}
    attach_undispatched(ours, APART, slots, held, weights)
    generator = torch.Generator().manual_seed(2)
    chosen, gates = torch.rand(T, E, generator=generator).topk(K).indices, torch.rand(T, K, generator=generator)
    x_BTH = torch.randn(2, T // 2, H, generator=generator)
    outs = [module(x_BTH, chosen, gates) for module in (whole, ours)]
    torch.testing.assert_close(outs[1], outs[0])
    for out in outs:
        out.square().sum().backward()
    for name in names:
        expected = whole.get_parameter(name).grad.view(E, WIDTH, H)[held_experts(slots, held)]
        torch.testing.assert_close(ours.get_parameter(name).grad, expected, rtol=1e-4, atol=1e-4)

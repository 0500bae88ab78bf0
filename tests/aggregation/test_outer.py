"""The outer step, against torch's own SGD where there is momentum and against plain averaging where there is none."""

import pytest
import torch

from aggregation.outer import OuterStep
from protocol.codecs import GRANULE
from protocol.errors import LocalError


def block(seed):
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(4, 5, generator=generator), "b": torch.randn(5, generator=generator)}


def test_plain_averaging_lands_on_the_mean_of_the_workers_exactly():
    start, local = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([0.75, 2.5])}
    new, momentum = OuterStep(1.0, 0.0).step(start, {"w": start["w"] - local["w"]})
    assert torch.equal(new["w"], local["w"])
    assert momentum is None


@pytest.mark.parametrize(("lr", "mu"), [(0.7, 0.9), (1.0, 0.5), (0.4, 0.0)])
def test_equals_torch_sgd_with_nesterov(lr, mu):
    current, momentum = block(0), None
    params = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in current.items()}
    sgd = torch.optim.SGD(params.values(), lr=lr, momentum=mu, nesterov=mu > 0)
    for step in range(4):
        gradient = block(step + 1)
        for name, param in params.items():
            param.grad = gradient[name].clone()
        sgd.step()
        current, momentum = OuterStep(lr, mu).step(current, gradient, momentum)
    for name, param in params.items():
        torch.testing.assert_close(current[name], param.detach(), rtol=1e-6, atol=1e-6)


def test_block_and_momentum_stay_and_the_new_block_lies_where_the_gradient_did():
    start, gradient, momentum = block(0), block(1), block(2)
    copies = [{name: tensor.clone() for name, tensor in part.items()} for part in (start, momentum)]
    new, buffer = OuterStep(0.7, 0.9).step(start, gradient, momentum)
    assert new["w"].data_ptr() == gradient["w"].data_ptr()
    new["w"].zero_()
    assert buffer is not None
    buffer["w"].zero_()
    for part, copy in zip((start, momentum), copies, strict=True):
        assert all(torch.equal(part[name], copy[name]) for name in copy)


@pytest.mark.parametrize("mu", [0.0, 0.9])
def test_granules_make_no_difference(mu):
    size = 2 * GRANULE + 7
    start, gradient, before = (torch.randn(size, generator=torch.Generator().manual_seed(n)) for n in range(3))
    after = before * mu + gradient if mu else None
    update = gradient if after is None else torch.add(gradient, after, alpha=mu)
    expected = torch.sub(start, update, alpha=0.7)
    new, buffer = OuterStep(0.7, mu).step({"w": start}, {"w": gradient}, {"w": before} if mu else None)
    assert torch.equal(new["w"], expected)
    assert (buffer is None) == (after is None)
    if buffer is not None and after is not None:
        assert torch.equal(buffer["w"], after)


def test_first_momentum_does_not_alias_the_gradient():
    gradient = block(1)
    _, buffer = OuterStep(0.7, 0.9).step(block(0), gradient)
    assert buffer is not None
    assert buffer["w"].data_ptr() != gradient["w"].data_ptr()


def test_names_and_shapes_must_agree():
    step = OuterStep(0.7, 0.9)
    with pytest.raises(LocalError, match="names: b"):
        step.step(block(0), {"w": torch.zeros(4, 5)})
    with pytest.raises(LocalError, match=r"expected shape \(4, 5\), got \(5, 4\)"):
        step.step(block(0), {"w": torch.zeros(5, 4), "b": torch.zeros(5)})
    with pytest.raises(LocalError, match="momentum"):
        step.step(block(0), block(1), {"w": torch.zeros(4, 5)})


@pytest.mark.parametrize(("lr", "mu"), [(0.0, 0.0), (-1.0, 0.0), (float("nan"), 0.0), (1.0, 1.0), (1.0, -0.1)])
def test_settings_are_checked(lr, mu):
    with pytest.raises(LocalError):
        OuterStep(lr, mu)


def test_what_is_averaged_moves_by_the_mean_alone_whatever_rate_and_momentum_are() -> None:
    step = OuterStep(0.7, 0.9, share=0.5, averaged=frozenset({"bias"}))
    block = {"w": torch.tensor([1.0, 2.0]), "bias": torch.tensor([0.25, -0.5])}
    moved, momentum = block, None
    for _ in range(3):
        moved, momentum = step.step(moved, {name: torch.ones(2) for name in block}, momentum)
    assert moved["bias"].tolist() == [0.25 - 3 * 0.5, -0.5 - 3 * 0.5]
    assert momentum is not None
    assert momentum["bias"].tolist() == [0.0, 0.0]
    plain, _ = OuterStep(0.35, 0.9).step({"w": block["w"]}, {"w": torch.ones(2)})
    once, _ = step.step(block, {name: torch.ones(2) for name in block})
    assert torch.equal(once["w"], plain["w"])

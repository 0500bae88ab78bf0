"""Whether a model needs its routers: what held-out loss rises by when tokens are sent to random experts instead.

Decides what "random" means: every expert of a layer gets as many tokens as every other, each token as many different
experts as ever, and the gates stay those that the router gave, in their order, so that nothing but the choice is taken
away. Where experts have become copies of each other the rise is 0. Compared between two models trained on the same
tokens it is *routing necessity*: the share of the one's rise that the other keeps. The draw follows from a seed, layer
and pass; nothing of the model is changed once the pass is over.

Shapes: N sequences of T+1 tokens, S tokens of a pass, E experts, K a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moe.config import config_to_json
from moe.full import mean_and_error, sequence_losses
from moe.routing import expert_modules
from moe.selection import chosen_in, with_choices


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomRouting:
    """What random experts did to a model, nats a token."""

    loss: float
    rise: float
    """Over the loss with its own routing; its standard error is over sequences, paired."""
    rise_se: float

    @property
    def in_words(self) -> str:
        """For a line of a table."""
        return f"random experts of equal load cost {self.rise:+.4f} ± {self.rise_se:.4f} nats a token"


def random_routing(
    model: PreTrainedModel, tokens_NT1: Tensor, batch: int, *, losses_N: Tensor | None = None, seed: int = 0
) -> RandomRouting:
    """Measure it; `losses_N` are those with its own routing where they are known (fp64)."""
    own_N = sequence_losses(model, tokens_NT1, batch) if losses_N is None else losses_N
    with random_experts(model, seed):
        random_N = sequence_losses(model, tokens_NT1, batch)
    rise, error = mean_and_error(random_N - own_N)
    return RandomRouting(loss=float(random_N.mean()), rise=rise, rise_se=error)


@contextmanager
def random_experts(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Tokens go to random experts while it is open."""
    experts = int(config_to_json(model.config)["num_experts"])
    generator = torch.Generator().manual_seed(seed)

    def on_inputs(_module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        chosen_SK = chosen_in(arguments, named)
        rows_SK = chosen_SK.reshape(-1, chosen_SK.shape[-1])
        drawn_SK = equal_load(rows_SK.shape[0], rows_SK.shape[1], experts, generator)
        return with_choices(arguments, named, drawn_SK.to(chosen_SK).view_as(chosen_SK))

    hooks = [module.register_forward_pre_hook(on_inputs, with_kwargs=True) for module in expert_modules(model).values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def equal_load(tokens: int, top_k: int, experts: int, generator: torch.Generator) -> Tensor:
    """[S, K] different experts for each token, each expert as often as any other, but for the last E tokens.

    Of every E tokens the experts are drawn in one random order, which is read from K random places on.
    """
    chunks = -(-tokens // experts)
    order_CE = torch.rand((chunks, experts), generator=generator).argsort(dim=1)
    from_CK = torch.rand((chunks, experts), generator=generator).argsort(dim=1)[:, :top_k]
    places_CEK = (torch.arange(experts)[None, :, None] + from_CK[:, None, :]) % experts
    return order_CE[:, :, None].expand(-1, -1, top_k).gather(1, places_CEK).flatten(0, 1)[:tokens]

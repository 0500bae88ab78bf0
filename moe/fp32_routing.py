"""Routers that compute in fp32 whatever the matrices around them are multiplied in.

Decides nothing but that: autocast would take their products in bf16, and logits that are rounded to eight bits send a
token elsewhere, scale its experts by steps of half a percent, and part two machines sooner (Fedus et al. 2021, "Switch
Transformers", arXiv:2101.03961, section 2.4: selective precision). Their weights are fp32 anyway (moe/masters.py), and
their products are small. Touches the model: each router's `forward`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe.routing import routers


def route_in_fp32(model: PreTrainedModel) -> None:
    """From now on logits and gates are fp32."""
    for router in routers(model).values():
        cast(Any, router).forward = partial(_in_fp32, router)


def _in_fp32(router: nn.Module, *arguments: Any, **named: Any) -> Any:
    given = [*arguments, *named.values()]
    device = next(one.device for one in given if isinstance(one, Tensor))
    with torch.autocast(device.type, enabled=False):
        whole = {key: _whole(one) for key, one in named.items()}
        return type(router).forward(router, *map(_whole, arguments), **whole)


def _whole(argument: Any) -> Any:
    is_rounded = isinstance(argument, Tensor) and argument.dtype in (torch.bfloat16, torch.float16)
    return argument.float() if is_rounded else argument

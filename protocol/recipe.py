"""The recipe of an inner step: which optimizer, at which rates, warmed up and clipped how.

Holds the one list of its fields, each with its default and its bounds; `message Recipe` in the proto has the same
names. The wire, the journal, the worker's checks and the settings all walk that list, so a field is added in these two
places and named elsewhere only where its value is used. A lease carries a whole recipe: no field of it is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, get_args

OptimizerName = Literal["adamw", "muon"]
OPTIMIZERS: Final[tuple[OptimizerName, ...]] = get_args(OptimizerName)
MUON: Final = "muon"
MastersName = Literal["fp32", "bf16"]
MASTERS: Final[tuple[MastersName, ...]] = get_args(MastersName)
BF16_MASTERS: Final = "bf16"
MomentsName = Literal["fp32", "compact"]
MOMENTS: Final[tuple[MomentsName, ...]] = get_args(MomentsName)
COMPACT: Final = "compact"
FrozenName = Literal["compute", "int8", "int4"]
FROZEN_DTYPES: Final[tuple[FrozenName, ...]] = get_args(FrozenName)
AS_COMPUTED: Final = "compute"
TrunkName = Literal["trained", "lora", "frozen"]
TRUNKS: Final[tuple[TrunkName, ...]] = get_args(TrunkName)
WHOLE_TRUNK: Final = "trained"
LORA_TRUNK: Final = "lora"
FROZEN_TRUNK: Final = "frozen"
ClippingName = Literal["whole", "layer"]
CLIPPINGS: Final[tuple[ClippingName, ...]] = get_args(ClippingName)
BY_LAYER: Final = "layer"

MAX_INNER_STEPS: Final = 100_000
"""DiLoCo's longest published inner loop is 2,000; two orders above that is an attack."""
_BELOW_ONE: Final = 1.0 - 1e-9


def _within(default: float, low: float, high: float) -> Any:
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


def _one_of(default: str, choices: tuple[str, ...]) -> Any:
    return dataclasses.field(default=default, metadata={"choices": choices})


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How every step of a lease is taken, with fresh moments at its begin."""

    optimizer: str = _one_of(MUON, OPTIMIZERS)
    """`muon`: Muon on matrices and AdamW on the rest; `adamw`: AdamW on everything."""
    learning_rate: float = _within(0.016, 1e-9, 1.0)
    """AdamW's."""
    muon_learning_rate: float = _within(0.08, 1e-9, 1.0)
    """Muon's; it follows the same schedule. Length of a step along a semi-orthogonal matrix."""
    muon_momentum: float = _within(0.95, 0.0, _BELOW_ONE)
    """Muon's, with Nesterov's correction."""
    router_lr_scale: float = _within(0.1, 0.0, 100.0)
    """Routers' learning rate as a share of AdamW's."""
    warmup_steps: int = _within(2, 0, MAX_INNER_STEPS)
    """First steps of a lease over which the rate rises."""
    weight_decay: float = _within(0.01, 0.0, 10.0)
    """Decoupled, times the learning rate."""
    adam_beta1: float = _within(0.9, 0.0, _BELOW_ONE)
    """Decay of AdamW's first moment, a step."""
    adam_beta2: float = _within(0.99, 0.0, _BELOW_ONE)
    """Decay of AdamW's second moment, a step."""
    adam_eps: float = _within(1e-8, 1e-16, 1.0)
    """Added to AdamW's denominator."""
    clip_norm: float = _within(1.0, 1e-6, 1e6)
    """Norm to which gradients are clipped: those of all that is held together, or each layer's (`clipping`)."""
    selection_bias_rate: float = _within(1e-3, 0.0, 1.0)
    """What an expert's selection bias moves by after a step, towards an even load; nothing to models without such."""
    masters: str = _one_of("fp32", MASTERS)
    """What weights are trained in: `fp32`; or `bf16`, rounded at random after each step by bits that follow from the
    lease: half the memory. Norms, biases and routers stay fp32."""
    moments: str = _one_of("fp32", MOMENTS)
    """What the optimizer remembers in: `fp32`; or `compact`: Muon's momentum in bf16, AdamW's moments in 8 bits."""
    frozen_dtype: str = _one_of(AS_COMPUTED, FROZEN_DTYPES)
    """What experts that a lease does not hold are computed with: `compute`: with what came of them, in the dtype of
    products; `int8` or `int4`: with what the codec of that name makes of it, an eighth to a half of the memory. Where
    they come in that codec anyway (`down.frozen_codec`) the numbers are the same."""
    trunk: str = _one_of(WHOLE_TRUNK, TRUNKS)
    """What of the trunk is trained: `trained`: all of it; `lora`: factors of low rank in place of its large matrices,
    and norms, biases and routers; `frozen`: nothing, and submissions hold expert columns alone. The last two are for a
    model that was trained before."""
    lora_rank: int = _within(16, 1, 1024)
    """Rank of what a lease adds to a matrix of a `lora` trunk."""
    lora_lr_scale: float = _within(1.0, 1e-6, 1000.0)
    """Learning rate of a `lora` trunk's factors, which AdamW trains beside Muon, too, as a share of AdamW's."""
    clipping: str = _one_of("whole", CLIPPINGS)
    """Which gradients are clipped together: `whole`: all that is held; `layer`: each layer's, and each tensor that lies
    in none by itself, so that a step layer by layer goes back through the model once and not twice."""

    @property
    def rounds_at_random(self) -> bool:
        """Whether a step's last bit may decide which way a value is rounded: machines that differ there part sooner."""
        return self.masters == BF16_MASTERS or self.moments == COMPACT


class Breach(NamedTuple):
    """One field that is out of its bounds."""

    field: str
    expected: str
    got: object


def breaches(recipe: Any) -> Iterator[Breach]:
    """Each field of `recipe` (a Recipe, or a message of its fields) that is out of bounds. NaN is out of all bounds."""
    for field in dataclasses.fields(Recipe):
        value, bounds = getattr(recipe, field.name), field.metadata
        if "choices" in bounds:
            if value not in bounds["choices"]:
                yield Breach(field.name, f"one of {', '.join(bounds['choices'])}", value)
        elif not bounds["low"] <= value <= bounds["high"]:
            yield Breach(field.name, f"{bounds['low']:g} to {bounds['high']:g}", value)


def recipe_of(wider: Recipe) -> Recipe:
    """The recipe alone of an object that has more fields than it."""
    return Recipe(**{field.name: getattr(wider, field.name) for field in dataclasses.fields(Recipe)})

"""The attacks of byzfl (0.0.11, a development dependency), each as a row of ours: `byzfl:CLASS`.

Decides what byzfl's attacks see: of each block, the honest vectors of all holders within the group of liars, flattened,
as fp32 rows [W, P]; in byzfl they see everybody's. Where one lie needs more rows than there are, the truth is sent.
byzfl's package imports torchvision, scipy and its own training framework at once, so it is installed with `--no-deps`
and only the module asked for is loaded, behind stand-ins that are gone again afterwards. scipy is needed by byzfl for
numpy arrays alone; it is given torch tensors here. Loads nothing of it before it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from protocol.errors import ConfigError
from simulator.adversaries.attack import Attack, Colluders, Forge

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from protocol.submission import Blocks

VERSION: Final = "0.0.11"
"""As in constraints.txt."""


class ByzflMissing(ConfigError):
    """byzfl is not installed; the message says how to."""


@lru_cache(maxsize=4)
def byzfl_module(name: str) -> Any:
    """`byzfl.aggregators` or `byzfl.attacks`; ByzflMissing where it is not installed."""
    spec = importlib.util.find_spec("byzfl")
    if spec is None or spec.submodule_search_locations is None:
        raise ByzflMissing(
            f"byzfl {VERSION} is not installed: run `make setup`, "
            f"or `python -m pip install --no-deps -c constraints.txt byzfl`"
        )
    byzfl = ModuleType("byzfl")  # in place of its __init__, which imports everything
    byzfl.__path__ = list(spec.submodule_search_locations)
    stand_ins: dict[str, ModuleType] = {"byzfl": byzfl}
    if importlib.util.find_spec("scipy") is None:
        scipy, spatial = ModuleType("scipy"), ModuleType("scipy.spatial")
        spatial.distance = ModuleType("scipy.spatial.distance")  # type: ignore[attr-defined]
        stand_ins |= {"scipy": scipy, "scipy.spatial": spatial}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module(f"byzfl.{name}")
    finally:
        for stand_in in stand_ins:
            sys.modules.pop(stand_in, None)


def _adapted(kind: str, argument: str, *, least_rows: int = 1) -> Forge:
    """byzfl's attack `kind` on each block, with `argument` (empty: none) set to the strength."""

    def forge(view: Colluders, strength: float, generator: torch.Generator) -> Blocks:
        import torch

        arguments: dict[str, Any] = {argument: strength} if argument else {}
        attack = getattr(byzfl_module("attacks"), kind)(**arguments)
        forged: dict[Any, dict[str, Tensor]] = {}
        for block, own in sorted(view.own.pseudo_gradient.items()):
            names = sorted(own)
            rows_WP = torch.stack(
                [torch.cat([one[name].float().reshape(-1) for name in names]) for one in view.holding(block)]
            )
            truth_P = torch.cat([own[name].float().reshape(-1) for name in names])
            with torch.random.fork_rng(devices=[]):  # byzfl draws from the global stream
                torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
                sent_P = attack(rows_WP) if len(rows_WP) >= least_rows else truth_P
            parts = torch.split(sent_P, [own[name].numel() for name in names])
            forged[block] = {
                name: part.reshape(own[name].shape).to(own[name].dtype) for name, part in zip(names, parts, strict=True)
            }
        return forged

    return forge


def _row(kind: str, does: str, argument: str = "", strength: float = 1.0, least_rows: int = 1) -> tuple[str, Attack]:
    forge = _adapted(kind, argument, least_rows=least_rows)
    return f"byzfl:{kind}", Attack(does=f"byzfl's {does}", strength=strength, forge=forge)


BYZFL_ATTACKS: Final[dict[str, Attack]] = dict(
    (
        _row("SignFlipping", "opposite of the group's mean"),
        _row("InnerProductManipulation", "opposite of the group's mean, STRENGTH times as far", "tau", 2.0),
        _row("ALittleIsEnough", "mean plus STRENGTH standard deviations", "tau", 1.5, 2),
        _row("Mimic", "copy of the group's first"),
        _row("Gaussian", "Gaussian noise of deviation STRENGTH, whatever the honest length", "sigma", 1.0),
        _row("Inf", "infinities"),
    )
)
"""Its `Optimal_` variants search a strength against one aggregation rule: an attack file of a dozen lines."""

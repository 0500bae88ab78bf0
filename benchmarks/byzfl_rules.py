"""The aggregators of byzfl, the library our rules are held against; without the rest of it, which wants what we lack.

byzfl's package imports torchvision, scipy and its own training framework at once, so it is installed with `--no-deps`
and only `byzfl.aggregators` is loaded, behind stand-ins that are gone again afterwards. scipy is needed by byzfl for
numpy arrays alone; it is given torch tensors here.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import lru_cache
from types import ModuleType
from typing import Any

VERSION = "0.0.11"
"""As in constraints.txt."""


class ByzflMissing(RuntimeError):
    """byzfl is not installed; the message says how to."""


@lru_cache(maxsize=1)
def aggregators() -> Any:
    """The module `byzfl.aggregators`: Average, Median, TrMean, Krum, MultiKrum, GeometricMedian, NNM and others."""
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
        return importlib.import_module("byzfl.aggregators")
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)

"""Each rule's tiny example, as its docstring prints it."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import aggregation

MODULES = [module.name for module in pkgutil.iter_modules(aggregation.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name):
    module = importlib.import_module(f"aggregation.{name}")
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.failed == 0


def test_every_rule_has_an_example():
    from aggregation import geometry, presteps

    for rule in (
        geometry.krum,
        geometry.multi_krum,
        geometry.geometric_median,
        geometry.centered_clipping,
        presteps.nearest_neighbour_mixing,
        presteps.bucketing,
    ):
        assert ">>>" in (rule.__doc__ or "")

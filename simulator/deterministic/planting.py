"""How a bug is planted: a part of the real code is another one as long as a context lasts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedBug:
    """One mutation."""

    name: str
    what: str
    plant: Callable[[], AbstractContextManager[None]]

    @classmethod
    def of(cls, plant: Callable[[], AbstractContextManager[None]]) -> PlantedBug:
        """Named as its function is, and told by its docstring."""
        return cls(name=plant.__name__.replace("_", "-"), what=(plant.__doc__ or "").rstrip("."), plant=plant)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, `owner.name` is `value`."""
    kept = vars(owner)[name] if isinstance(owner, type) else getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)

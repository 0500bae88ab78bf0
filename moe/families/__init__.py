"""Model families: what the MoE classes of `transformers` are made of, as one table of data."""

from moe.families.family import Family
from moe.families.table import FAMILIES, family_named

__all__ = ["FAMILIES", "Family", "family_named"]

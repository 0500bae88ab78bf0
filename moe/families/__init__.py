"""Model families: what the MoE classes of `transformers` are made of, as one table of data."""

from moe.families.family import Family, PerExpert
from moe.families.table import FAMILIES, family_named, why_not

__all__ = ["FAMILIES", "Family", "PerExpert", "family_named", "why_not"]

"""Datasets: text in, content-addressed tokens out, exact sequences for leases.

Decides nothing itself: `prepare` makes a folder, `Dataset.open` reads one.
"""

from coordinator.datasets.card import DatasetCard, SourceCard
from coordinator.datasets.dataset import Dataset, is_prepared
from coordinator.datasets.prepare import open_or_prepare, prepare

__all__ = ["Dataset", "DatasetCard", "SourceCard", "is_prepared", "open_or_prepare", "prepare"]

"""Datasets: text in, content-addressed tokens out, exact sequences for leases.

Decides nothing itself: `prepare` makes a folder, `Dataset.open` reads one.
"""

from coordinator.datasets.card import DatasetCard, SourceCard
from coordinator.datasets.dataset import Dataset, is_prepared
from coordinator.datasets.prepare import prepare

__all__ = ["Dataset", "DatasetCard", "SourceCard", "is_prepared", "prepare"]

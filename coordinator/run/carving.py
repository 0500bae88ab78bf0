"""A run's data: what leases are cut from, and what its screening has for itself.

Decides whether a run has a secret split (`screening_share`, fixed at `init`) and says so where it has none: a run that
began before there was one, or whose data are too few. Always: whoever opens a run's data through here is given none of
the split's sequences for a lease. Touches the run folder at `init`; reads it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.settings import RunSettings
from protocol.errors import ConfigError, LocalError

if TYPE_CHECKING:
    from coordinator.datasets import Dataset

SCREENING_FOLDER = "screening"
_PUBLIC = "submissions are measured on the held-out part, which everybody knows who has the text"


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstData:
    """The data that a run begins with."""

    dataset: Dataset
    share: float
    facts: dict[str, str]
    """For `run.json`."""


def first_data(
    root: Path,
    settings: RunSettings,
    screening_text: str | None,
    *,
    secret: bytes,
    note: Callable[[str], None],
    progress: Callable[[int, int], None] | None,
) -> FirstData:
    """What `settings` name, prepared into the run folder `root` where it is text, and carved; ConfigError if unfit."""
    from coordinator.datasets import is_prepared, open_or_prepare

    place = Path(settings.data).expanduser().resolve() if is_prepared(settings.data) else Path("dataset")
    made = root / "dataset"
    dataset = open_or_prepare(settings.data, made, checkpoint=settings.checkpoint, progress=progress, note=note)
    share, doubt = chosen_share(settings, dataset)
    if doubt:
        note(doubt)
    added = None if screening_text is None else _prepared(root, screening_text, dataset, share, note)
    facts = {"dataset": str(place), "dataset_digest": dataset.digest}
    if added is not None:
        facts["screening_text_digest"] = added.digest
    own = carved(dataset, settings, share, secret=secret, unpublished=added)
    return FirstData(dataset=own, share=share, facts=facts)


def own_data(
    root: Path, settings: RunSettings, place: str, digest: str, added: str | None, *, secret: Callable[[], bytes]
) -> Dataset:
    """The data of the run in `root`, carved as it began; `added` is the digest of text for screening alone."""
    dataset = _opened(root / place, digest)
    if not settings.screening_share:
        return dataset
    unpublished = None if added is None else _opened(root / SCREENING_FOLDER, added)
    return carved(dataset, settings, settings.screening_share, secret=secret(), unpublished=unpublished)


def chosen_share(settings: RunSettings, dataset: Dataset) -> tuple[float, str]:
    """A new run's `screening_share`, and a sentence where it is 0; ConfigError where a larger one was asked in vain."""
    from coordinator.datasets.screening import USUAL_SHARE, stretches, too_little

    asked, a_round = settings.screening_share, settings.screening_sequences
    train = dataset.train_sequences(settings.sequence_length)
    if asked == 0.0:
        return 0.0, f"screening_share is 0: {_PUBLIC}"
    if stretches(train, asked or USUAL_SHARE, a_round):
        return asked or USUAL_SHARE, ""
    if asked is not None:
        raise ConfigError(f"screening_share is {asked}, and {too_little(train, a_round)}")
    return 0.0, f"{settings.data} has too little text for a secret split ({train} training sequences): {_PUBLIC}"


def carved(
    dataset: Dataset, settings: RunSettings, share: float, *, secret: bytes, unpublished: Dataset | None = None
) -> Dataset:
    """`dataset` as a run with this `share` has it: as it is where there is no split."""
    if not share:
        return dataset
    return dataset.carved(
        secret,
        share=share,
        a_round=settings.screening_sequences,
        seq_len=settings.sequence_length,
        unpublished=unpublished,
    )


def _prepared(root: Path, text: str, dataset: Dataset, share: float, note: Callable[[str], None]) -> Dataset:
    """Text that was never published, in the run's own tokens, readable by the owner alone."""
    from coordinator.datasets import prepare

    if not share:
        raise ConfigError(f"--screening-text {text} is counted into the secret split, and this run has none: {_PUBLIC}")
    try:
        found = prepare([text], root / SCREENING_FOLDER, tokenizer=dataset.folder, note=note)
    except ConfigError as error:
        raise ConfigError(f"--screening-text {text}: {error}") from error
    if found.vocab_size != dataset.vocab_size:
        raise LocalError(f"{text}: expected {dataset.vocab_size} tokens in the vocabulary, got {found.vocab_size}")
    for path in (root / SCREENING_FOLDER).rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return found


def _opened(place: Path, digest: str) -> Dataset:
    from coordinator.datasets import Dataset

    dataset = Dataset.open(place)
    if dataset.digest != digest:
        raise ConfigError(f"{place} has digest {dataset.digest}, the run began with {digest}")
    return dataset

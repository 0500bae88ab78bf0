"""A prepared dataset, memory-mapped: exact sequences for leases, and held-out sequences for nobody else.

Decides what sequence number i is: tokens [i * (L + 1), (i + 1) * (L + 1)) of a part, for sequence length L, so that
sequences share no token. A lease's positions go through the seeded permutation of `permutation.py`, so disjoint ranges
of one seed name disjoint sequences. Training and held-out tokens are two files; nothing here reads the one for the
other, and only `heldout_*` reads held-out tokens. A run's own dataset is `carved`: it keeps the sequences that its
submissions are measured on (`screening.py`) to itself, and whatever asks it for a lease's is given none of them.

Legend: N sequences, L+1 tokens of each (inputs and targets overlap by all but one).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordinator.datasets.card import (
    CARD_FILE,
    HELDOUT_FILE,
    TRAIN_FILE,
    DatasetCard,
    read_card,
)
from coordinator.datasets.permutation import permuted
from coordinator.datasets.screening import ScreeningSplit
from moe.companions import COMPANIONS_FOLDER, read_companions
from moe.tokenizer import TOKENIZER_FILE
from protocol.errors import ConfigError, LocalError
from protocol.ids import Digest
from protocol.sequences import token_dtype

Tokens = NDArray[Any]


class Dataset:
    """A dataset that is open for reading. `Dataset.open` is the way to get one."""

    def __init__(self, folder: Path, card: DatasetCard, train_N: Tokens, heldout_N: Tokens) -> None:
        self.folder = folder
        self.card = card
        self._train_N = train_N
        self._heldout_N = heldout_N
        self._split: ScreeningSplit | None = None
        self._unpublished_NL: Tokens | None = None

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> Dataset:
        """Open a prepared folder, or a folder that holds exactly one; `verify` reads every byte against the card."""
        folder = _dataset_folder(Path(folder).expanduser())
        card = read_card(folder)
        dtype = token_dtype(card.vocab_size)
        if dtype.itemsize != card.token_bytes:
            raise ConfigError(f"{folder}: {card.token_bytes} bytes a token do not go with {card.vocab_size} tokens")
        train_N = _map(folder / TRAIN_FILE, dtype, card.train_tokens)
        heldout_N = _map(folder / HELDOUT_FILE, dtype, card.heldout_tokens)
        dataset = cls(folder, card, train_N, heldout_N)
        if verify:
            dataset.verify()
        return dataset

    @property
    def licence(self) -> str:
        """Under which it is, as its card says."""
        return self.card.licence

    @property
    def digest(self) -> Digest:
        """The digest that a run names its data by."""
        return self.card.digest

    @property
    def vocab_size(self) -> int:
        """Every token is below this."""
        return self.card.vocab_size

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8, uint16 or uint32, little endian."""
        return token_dtype(self.card.vocab_size)

    @property
    def tokenizer_json(self) -> bytes:
        """The `tokenizer.json` that a checkpoint of this run carries."""
        return (self.folder / TOKENIZER_FILE).read_bytes()

    @property
    def companions(self) -> dict[str, bytes]:
        """The tokenizer, and what else of the checkpoint that it came from was kept when the text was prepared."""
        return {**read_companions(self.folder / COMPANIONS_FOLDER), TOKENIZER_FILE: self.tokenizer_json}

    def carved(
        self, secret: bytes, *, share: float, a_round: int, seq_len: int, unpublished: Dataset | None = None
    ) -> Dataset:
        """This dataset for one run: a `share` of its sequences, and `unpublished` text, are screening's alone.

        ConfigError where there are too few for the `a_round` sequences that a submission is measured on.
        """
        carved = Dataset(self.folder, self.card, self._train_N, self._heldout_N)
        others_NL = None if unpublished is None else unpublished.everything(seq_len)
        carved._unpublished_NL = others_NL
        carved._split = ScreeningSplit.drawn(
            secret,
            train=_sequence_count(self._train_N, seq_len),
            share=share,
            a_round=a_round,
            unpublished=0 if others_NL is None else len(others_NL),
        )
        return carved

    @property
    def has_secret_split(self) -> bool:
        """Whether submissions are measured on text that no lease names."""
        return self._split is not None

    def train_sequences(self, seq_len: int) -> int:
        """How many training sequences there are for leases: one names positions below this."""
        count = _sequence_count(self._train_N, seq_len)
        return count if self._split is None else self._matching(self._split, count).leased

    def heldout_sequences(self, seq_len: int) -> int:
        """How many held-out sequences there are."""
        return _sequence_count(self._heldout_N, seq_len)

    def sequences(self, seed: int, start: int, count: int, seq_len: int) -> Tokens:
        """Training sequences [count, seq_len + 1] at positions [start, start + count) of the seed's permutation."""
        size = self.train_sequences(seq_len)
        if start < 0 or count < 0 or start + count > size:
            raise LocalError(f"dataset: expected positions below {size}, got {start} to {start + count}")
        split = self._split
        numbers_N = permuted(seed, size, start, count) if split is None else split.numbers(seed, start, count)
        return _rows(self._train_N, seq_len, numbers_N)

    def screening_batch(self, seed: int, count: int, seq_len: int, round_: int | None = None) -> Tokens:
        """`count` different sequences [count, seq_len + 1] that no lease names, drawn by `seed`; all of fewer.

        Of the part of them that is `round_`'s, where one is named. Held-out ones where nothing was carved out.
        """
        split = self._split
        if split is None:
            return self.heldout_batch(seed, count, seq_len)
        numbers_N = self._matching(split, _sequence_count(self._train_N, seq_len)).drawn_for(seed, count, round_)
        drawn_NL = _rows(self._train_N, seq_len, np.minimum(numbers_N, split.train - 1))
        if self._unpublished_NL is not None:
            added_N = numbers_N >= split.train
            drawn_NL[added_N] = self._unpublished_NL[numbers_N[added_N] - split.train]
        return drawn_NL

    def everything(self, seq_len: int) -> Tokens:
        """All sequences of both parts, [N, seq_len + 1]."""
        parts = (self._train_N, self._heldout_N)
        counts = [_sequence_count(part_N, seq_len) for part_N in parts]
        return np.concatenate(
            [_rows(part_N, seq_len, np.arange(count)) for part_N, count in zip(parts, counts, strict=True)]
        )

    def heldout_batch(self, seed: int, count: int, seq_len: int) -> Tokens:
        """`count` different held-out sequences drawn by `seed`; all of them where there are fewer."""
        size = self._some_heldout(seq_len)
        return _rows(self._heldout_N, seq_len, permuted(seed, size, 0, min(count, size)))

    def heldout_all(self, seq_len: int, limit: int | None = None) -> Tokens:
        """Held-out sequences in order; with a limit, that many at even distances, always the same ones."""
        size = self._some_heldout(seq_len)
        count = size if limit is None else min(limit, size)
        return _rows(self._heldout_N, seq_len, np.arange(count, dtype=np.int64) * size // max(1, count))

    def verify(self) -> None:
        """Read all files against the digests on the card; ConfigError names the first that differs."""
        expected = {
            TRAIN_FILE: self.card.train_sha256,
            HELDOUT_FILE: self.card.heldout_sha256,
            TOKENIZER_FILE: self.card.tokenizer_sha256,
        }
        for name, digest in expected.items():
            with (self.folder / name).open("rb") as file:
                got = hashlib.file_digest(file, "sha256").hexdigest()
            if got != digest:
                raise ConfigError(f"{self.folder / name}: digest expected {digest}, got {got}; prepare the data again")

    def _matching(self, split: ScreeningSplit, count: int) -> ScreeningSplit:
        if split.train != count:
            raise LocalError(f"dataset: carved for {split.train} training sequences, asked for {count}")
        return split

    def _some_heldout(self, seq_len: int) -> int:
        size = self.heldout_sequences(seq_len)
        if size == 0:
            raise ConfigError(
                f"{self.folder}: {self.card.heldout_tokens} held-out tokens do not make one sequence of {seq_len + 1}"
            )
        return size


def is_prepared(place: str | Path) -> bool:
    """Whether `Dataset.open` is meant, rather than text to prepare: a prepared folder, or one that holds some."""
    folder = Path(place).expanduser()
    return (folder / CARD_FILE).is_file() or (folder.is_dir() and any(folder.glob(f"[!.]*/{CARD_FILE}")))


def _dataset_folder(folder: Path) -> Path:
    if (folder / CARD_FILE).is_file() or not folder.is_dir():
        return folder
    inside = sorted(path.parent for path in folder.glob(f"[!.]*/{CARD_FILE}"))
    if len(inside) > 1:
        raise ConfigError(f"{folder} holds {len(inside)} datasets; name one of them")
    return inside[0] if inside else folder


def _map(path: Path, dtype: np.dtype[Any], tokens: int) -> Tokens:
    try:
        got_bytes = path.stat().st_size
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    expected_bytes = tokens * dtype.itemsize
    if got_bytes != expected_bytes or tokens == 0:
        raise ConfigError(f"{path}: expected {expected_bytes} bytes, got {got_bytes}; prepare the data again")
    return np.memmap(path, dtype=dtype, mode="r", shape=(tokens,))


def _sequence_count(part_N: Tokens, seq_len: int) -> int:
    if seq_len < 1:
        raise LocalError(f"dataset: expected a sequence length of at least 1, got {seq_len}")
    return len(part_N) // (seq_len + 1)


def _rows(part_N: Tokens, seq_len: int, numbers_N: NDArray[np.int64]) -> Tokens:
    """A copy of the numbered sequences, [N, L+1]."""
    count = _sequence_count(part_N, seq_len)
    table_NL = part_N[: count * (seq_len + 1)].reshape(count, seq_len + 1)
    return np.array(table_NL[numbers_N])

"""The dataset card: what a folder of tokens was made of, and what may be done with it.

Decides the form of `card.json` and the digest that a dataset goes by. The digest covers everything that a lease can be
answered from (format, token type, vocabulary, the digests of tokens and tokenizer), and nothing that says where the
text came from: two machines that tokenize the same text get the same digest. Holds no path of the machine.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from protocol.errors import ConfigError
from protocol.ids import Digest, digest_of
from protocol.misfits import misfits

FORMAT = "barnraise-dataset-1"
CARD_FILE = "card.json"
TRAIN_FILE = "train.bin"
HELDOUT_FILE = "heldout.bin"
MAX_CARD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCard:
    """One source, as prepared: by kind and name, never by path."""

    kind: str
    name: str
    documents: int
    duplicates: int
    skipped: int
    """Files or entries that are not text, are empty, do not decode as UTF-8, or cannot be read."""
    text_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetCard:
    """Everything that `barnraise data show` prints."""

    digest: Digest
    format: str
    tokenizer: str
    """`bytes`, or the name of the file's folder."""
    vocab_size: int
    token_bytes: int
    end_of_document: int | None
    train_tokens: int
    train_documents: int
    train_sha256: Digest
    heldout_tokens: int
    heldout_documents: int
    heldout_sha256: Digest
    heldout_share: float
    tokenizer_sha256: Digest
    licence: str
    allowed_uses: tuple[str, ...]
    sources: tuple[SourceCard, ...]

    def to_json(self) -> bytes:
        """The bytes of `card.json`: sorted, indented, one final newline."""
        return (json.dumps(asdict(self), indent=2, sort_keys=True) + "\n").encode()

    def content_digest(self) -> Digest:
        """What `digest` must be."""
        return content_digest(
            vocab_size=self.vocab_size,
            token_bytes=self.token_bytes,
            end_of_document=self.end_of_document,
            train_sha256=self.train_sha256,
            heldout_sha256=self.heldout_sha256,
            tokenizer_sha256=self.tokenizer_sha256,
        )


_CARD = TypeAdapter(DatasetCard)


def content_digest(
    *,
    vocab_size: int,
    token_bytes: int,
    end_of_document: int | None,
    train_sha256: Digest,
    heldout_sha256: Digest,
    tokenizer_sha256: Digest,
) -> Digest:
    """The digest that a dataset goes by."""
    content = {
        "format": FORMAT,
        "vocab_size": vocab_size,
        "token_bytes": token_bytes,
        "end_of_document": end_of_document,
        "train": train_sha256,
        "heldout": heldout_sha256,
        "tokenizer": tokenizer_sha256,
    }
    return digest_of(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def read_card(folder: Path) -> DatasetCard:
    """The card of a prepared folder; ConfigError when there is none, or one that is not of this format."""
    path = folder / CARD_FILE
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CARD_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{folder} is not a prepared dataset: cannot read {CARD_FILE} ({error.strerror})") from error
    if len(raw) > MAX_CARD_BYTES:
        raise ConfigError(f"{path}: expected at most {MAX_CARD_BYTES} bytes of card")
    try:
        card = _CARD.validate_json(raw)
    except ValidationError as error:
        where, what = misfits(error)[0]
        raise ConfigError(f"{path} is not a card of format {FORMAT}: {where or 'the whole'}: {what}") from error
    if card.format != FORMAT:
        raise ConfigError(f"{path}: format expected {FORMAT}, got {card.format!r}")
    if card.digest != card.content_digest():
        raise ConfigError(f"{path}: digest expected {card.content_digest()}, got {card.digest}; prepare the data again")
    return card

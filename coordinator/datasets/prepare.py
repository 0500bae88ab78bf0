"""Text to a content-addressed folder of tokens, with a held-out part made of whole documents.

Decides which documents are held out: those whose SHA-256 falls below the share, so the choice depends on the text
alone and not on order, name or machine. Documents that occur twice are taken once. Memory holds one batch of documents
and one digest a document, whatever the size of the text. The folder appears whole under its digest, or not at all.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from numpy.typing import NDArray

from coordinator.datasets.card import (
    CARD_FILE,
    FORMAT,
    HELDOUT_FILE,
    TRAIN_FILE,
    DatasetCard,
    SourceCard,
    content_digest,
)
from coordinator.datasets.dataset import Dataset, is_prepared
from coordinator.datasets.reading import Tally, legible
from coordinator.datasets.sources import STDLIB, Source, parse_source
from coordinator.datasets.tokenizing import BYTES, DocumentTokenizer, checkpoint_tokenizer, tokenizer_named
from moe.companions import COMPANIONS_FOLDER, Companions, write_companions
from moe.tokenizer import TOKENIZER_FILE
from protocol.errors import ConfigError
from protocol.folders import sync_folder, sync_tree, work_inside
from protocol.ids import Digest, digest_of
from protocol.sequences import token_dtype

OnText = Callable[[int, int], None]
"""Called with documents and tokens so far."""
Note = Callable[[str], None]
"""Called, at the end, with sentences on what was left out."""

BATCH_DOCUMENTS = 256
"""Documents tokenized at a time, in parallel by the `tokenizers` package."""

WINDOW_DOCUMENTS = 64
"""Among this many first documents the one with the smallest hash is held out and the one with the largest is trained
on, whatever the share: so that a small source has both parts."""

STDLIB_LICENCE = "PSF-2.0"
ALL_USES = ("training", "evaluation")


def prepare(
    sources: Sequence[str | Path],
    out_dir: str | Path,
    *,
    tokenizer: str | Path = BYTES,
    heldout_share: float = 0.05,
    licence: str | None = None,
    allowed_uses: Sequence[str] | None = None,
    progress: OnText | None = None,
    note: Note = lambda _: None,
) -> Dataset:
    """Tokenize `sources` into `out_dir/DIGEST` and open it; a folder that is there already is used as it is."""
    if not 0.0 < heldout_share < 1.0:
        raise ConfigError(f"held-out share must be between 0 and 1, got {heldout_share}")
    if not sources:
        raise ConfigError("no text source: name a folder, a file, `stdlib` or `datasets:NAME`")
    parsed = [parse_source(source) for source in sources]
    chosen = tokenizer_named(tokenizer)
    out_dir = Path(out_dir).expanduser()
    with work_inside(out_dir) as work:
        part_dir = work / "dataset"
        part_dir.mkdir()
        with ExitStack() as stack:
            parts = _Parts(
                train=_TokenFile.create(part_dir / TRAIN_FILE, stack),
                heldout=_TokenFile.create(part_dir / HELDOUT_FILE, stack),
            )
            source_cards = _tokenize(parsed, chosen, parts, heldout_share, progress, note)
        card = _card(chosen, parts, heldout_share, source_cards, _licence(parsed, licence), allowed_uses)
        (part_dir / TOKENIZER_FILE).write_bytes(chosen.tokenizer_json)
        _write_companions(part_dir, chosen.companions)
        (part_dir / CARD_FILE).write_bytes(card.to_json())
        return Dataset.open(_publish(part_dir, out_dir / card.digest))


def open_or_prepare(
    data: str,
    out_dir: str | Path,
    *,
    checkpoint: str | Path | None = None,
    progress: OnText | None = None,
    note: Note = lambda _: None,
) -> Dataset:
    """The dataset that `data` names, or one that is prepared from it with the tokenizer of the checkpoint."""
    if is_prepared(data):
        return Dataset.open(data)
    return prepare([data], out_dir, tokenizer=checkpoint_tokenizer(checkpoint), progress=progress, note=note)


@dataclass(slots=True)
class _TokenFile:
    """One file of tokens being written, with its digest and counts."""

    file: IO[bytes]
    documents: int = 0
    tokens: int = 0
    hasher: Any = field(default_factory=hashlib.sha256)

    @classmethod
    def create(cls, path: Path, stack: ExitStack) -> _TokenFile:
        return cls(stack.enter_context(path.open("wb")))

    def append(self, tokens_N: NDArray[Any]) -> None:
        raw = tokens_N.astype(tokens_N.dtype.newbyteorder("<"), copy=False).tobytes()
        self.file.write(raw)
        self.hasher.update(raw)
        self.documents += 1
        self.tokens += len(tokens_N)

    @property
    def digest(self) -> Digest:
        return Digest(self.hasher.hexdigest())


@dataclass(slots=True)
class _Parts:
    train: _TokenFile
    heldout: _TokenFile

    @property
    def documents(self) -> int:
        return self.train.documents + self.heldout.documents

    @property
    def tokens(self) -> int:
        return self.train.tokens + self.heldout.tokens


def _tokenize(
    sources: Sequence[Source],
    tokenizer: DocumentTokenizer,
    parts: _Parts,
    heldout_share: float,
    progress: OnText | None,
    note: Note,
) -> list[SourceCard]:
    """Write every document to its part; the cards of the sources."""
    counters = [_Counter(source) for source in sources]
    seen: set[bytes] = set()
    stream = (document for counter in counters for document in counter.fresh_documents(seen))
    split = _Split(heldout_share)
    while batch := list(islice(stream, BATCH_DOCUMENTS)):
        held_out = split.decide([document_hash for document_hash, _ in batch])
        encoded = tokenizer.encode([document for _, document in batch])
        for tokens_N, is_held_out in zip(encoded, held_out, strict=True):
            (parts.heldout if is_held_out else parts.train).append(tokens_N)
        if progress is not None:
            progress(parts.documents, parts.tokens)
    left_out = [counter.left_out() for counter in counters if counter.tally.skipped]
    for name, part in (("train", parts.train), ("held-out", parts.heldout)):
        if not part.tokens:
            found = f"found {parts.documents} different documents; give at least 2"
            raise ConfigError("; ".join((f"the {name} part is empty: {found}", *left_out)))
    for sentence in left_out:
        note(sentence)
    return [counter.card() for counter in counters]


@dataclass(slots=True)
class _Counter:
    """Reads one source and counts what it gives."""

    source: Source
    tally: Tally = field(default_factory=Tally)
    documents: int = 0
    duplicates: int = 0
    text_bytes: int = 0

    def fresh_documents(self, seen: set[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Hash and text of each document that was not seen before."""
        for document in self.source.documents(self.tally):
            document_hash = hashlib.sha256(document).digest()
            if document_hash in seen:
                self.duplicates += 1
                continue
            seen.add(document_hash)
            self.documents += 1
            self.text_bytes += len(document)
            yield document_hash, document

    def left_out(self) -> str:
        """What gave no document, and why."""
        return f"{self.source.name}: {self.tally.in_words}"

    def card(self) -> SourceCard:
        return SourceCard(
            kind=self.source.kind,
            name=self.source.name,
            documents=self.documents,
            duplicates=self.duplicates,
            skipped=self.tally.skipped,
            text_bytes=self.text_bytes,
        )


@dataclass(slots=True)
class _Split:
    """Which documents are held out; the first window must give both parts something."""

    heldout_share: float
    is_first: bool = True

    def decide(self, hashes: Sequence[bytes]) -> list[bool]:
        threshold = int(self.heldout_share * (1 << 64))
        held_out = [int.from_bytes(value[:8], "big") < threshold for value in hashes]
        if self.is_first and len(hashes) >= 2:
            window = range(min(len(hashes), WINDOW_DOCUMENTS))
            held_out[min(window, key=hashes.__getitem__)] = True
            held_out[max(window, key=hashes.__getitem__)] = False
        self.is_first = False
        return held_out


def _card(
    tokenizer: DocumentTokenizer,
    parts: _Parts,
    heldout_share: float,
    sources: Sequence[SourceCard],
    licence: str,
    allowed_uses: Sequence[str] | None,
) -> DatasetCard:
    token_bytes = token_dtype(tokenizer.vocab_size).itemsize
    tokenizer_sha256 = digest_of(tokenizer.tokenizer_json)
    return DatasetCard(
        digest=content_digest(
            vocab_size=tokenizer.vocab_size,
            token_bytes=token_bytes,
            end_of_document=tokenizer.end_of_document,
            train_sha256=parts.train.digest,
            heldout_sha256=parts.heldout.digest,
            tokenizer_sha256=tokenizer_sha256,
        ),
        format=FORMAT,
        tokenizer=tokenizer.name,
        vocab_size=tokenizer.vocab_size,
        token_bytes=token_bytes,
        end_of_document=tokenizer.end_of_document,
        train_tokens=parts.train.tokens,
        train_documents=parts.train.documents,
        train_sha256=parts.train.digest,
        heldout_tokens=parts.heldout.tokens,
        heldout_documents=parts.heldout.documents,
        heldout_sha256=parts.heldout.digest,
        heldout_share=heldout_share,
        tokenizer_sha256=tokenizer_sha256,
        licence=licence,
        allowed_uses=tuple(legible(use) for use in (ALL_USES if allowed_uses is None else allowed_uses)),
        sources=tuple(sources),
    )


def _licence(sources: Sequence[Source], given: str | None) -> str:
    """What the operator says; the standard library's own where that is all there is; never a guess."""
    if given is not None:
        return legible(given)
    return STDLIB_LICENCE if all(source.kind == STDLIB for source in sources) else "unknown"


def _publish(part_dir: Path, folder: Path) -> Path:
    """Give the finished folder its name; the same content under that name may be there already."""
    if (folder / CARD_FILE).is_file():
        _replace_companions(part_dir / COMPANIONS_FOLDER, folder / COMPANIONS_FOLDER)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        sync_tree(part_dir)
        part_dir.rename(folder)
        sync_folder(folder.parent)
    return folder


def _write_companions(part_dir: Path, companions: Companions) -> None:
    beside = {name: content for name, content in companions.items() if name != TOKENIZER_FILE}
    if beside:
        write_companions(beside, part_dir / COMPANIONS_FOLDER)


def _replace_companions(new: Path, present: Path) -> None:
    """The digest covers tokens and vocabulary alone: what stands beside them is what was asked for last."""
    if not new.is_dir():
        return
    sync_tree(new)
    if present.is_dir():
        present.rename(new.with_suffix(".old"))
    new.rename(present)
    sync_folder(present.parent)

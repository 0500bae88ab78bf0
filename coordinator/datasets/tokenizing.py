"""Text to tokens: plain bytes by default, or any `tokenizer.json` of the `tokenizers` package.

Decides which ids a document becomes and which id ends it. A document's own text can never produce a special token:
whatever `<|endoftext|>` stands in it is tokenized as the characters that it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from coordinator.datasets.reading import legible
from moe.companions import Companions, end_of_text, read_companions
from moe.tokenizer import (
    TOKENIZER_FILE,
    byte_tokenizer_json,
    load_tokenizer,
    own_tokenizer,
    read_tokenizer,
    read_vocabulary,
    same_tokenizer,
)
from protocol.errors import ConfigError
from protocol.sequences import token_dtype

BYTES = "bytes"

END_OF_DOCUMENT_NAMES = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_document|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "[EOS]",
    "<|im_end|>",
)
"""Names by which published tokenizers call the token that ends a text, commonest first."""


class DocumentTokenizer(Protocol):
    """What preparing a dataset needs of a tokenizer."""

    @property
    def name(self) -> str:
        """`bytes`, or what the tokenizer's file or folder is called."""
        ...

    @property
    def tokenizer_json(self) -> bytes:
        """The file that a checkpoint carries."""
        ...

    @property
    def companions(self) -> Companions:
        """What else of the checkpoint belongs to it: nothing where it did not come from one."""
        ...

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        ...

    @property
    def end_of_document(self) -> int | None:
        """The id that follows each document, where the vocabulary has one."""
        ...

    def encode(self, documents: Sequence[bytes]) -> list[NDArray[Any]]:
        """Tokens of each UTF-8 document, its end included, in the narrowest type that holds the vocabulary."""
        ...


class ByteTokenizer:
    """Ids 0..255 are the bytes themselves; nothing is looked up."""

    name = BYTES

    def __init__(self, tokenizer_json: bytes, companions: Companions) -> None:
        self.tokenizer_json = tokenizer_json
        self.companions = companions
        vocabulary = read_vocabulary(tokenizer_json, BYTES)
        self.vocab_size = vocabulary.size
        self.end_of_document = _end_of_document(vocabulary.special)
        if self.end_of_document is None:
            raise ConfigError(f"the byte tokenizer has none of the tokens {', '.join(END_OF_DOCUMENT_NAMES)}")
        self._dtype = token_dtype(self.vocab_size)

    def encode(self, documents: Sequence[bytes]) -> list[NDArray[Any]]:
        """See `DocumentTokenizer`."""
        return [self._encode_one(document) for document in documents]

    def _encode_one(self, document: bytes) -> NDArray[Any]:
        tokens_N = np.empty(len(document) + 1, dtype=self._dtype)
        tokens_N[:-1] = np.frombuffer(document, dtype=np.uint8)
        tokens_N[-1] = self.end_of_document
        return tokens_N


class FileTokenizer:
    """A `tokenizer.json`, as published beside a model; of a folder, what else belongs to the tokenizer as well."""

    def __init__(self, path: Path) -> None:
        self.companions: Companions = read_companions(path) if path.is_dir() else {}
        path = path / TOKENIZER_FILE if path.is_dir() else path
        self.name = legible(path.resolve().parent.name if path.name == TOKENIZER_FILE else path.stem)
        self.tokenizer_json = read_tokenizer(path)
        vocabulary = read_vocabulary(self.tokenizer_json, path)
        self.vocab_size = vocabulary.size
        # A text ends as published tokenizers have it; one that calls its end otherwise says so beside the vocabulary.
        named = vocabulary.ids.get(end_of_text(self.companions) or "")
        ends = _end_of_document(vocabulary.special)
        self.end_of_document: int | None = named if ends is None else ends
        self._dtype = token_dtype(self.vocab_size)
        self._tokenizer = load_tokenizer(self.tokenizer_json, path)

    def encode(self, documents: Sequence[bytes]) -> list[NDArray[Any]]:
        """See `DocumentTokenizer`."""
        texts = [document.decode("utf-8") for document in documents]
        end = [] if self.end_of_document is None else [self.end_of_document]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids + end, dtype=self._dtype) for encoding in encodings]


def tokenizer_named(tokenizer: str | Path) -> DocumentTokenizer:
    """`bytes`, or a path to a `tokenizer.json` or to a folder that holds one, such as a checkpoint."""
    ours = byte_tokenizer_json()
    if tokenizer == BYTES:
        return ByteTokenizer(ours, {})
    found = FileTokenizer(Path(tokenizer).expanduser())
    return ByteTokenizer(ours, found.companions) if same_tokenizer(found.tokenizer_json, ours) else found


def checkpoint_tokenizer(checkpoint: str | Path | None) -> str | Path:
    """What to prepare text with for this start of a run: the checkpoint's own tokenizer, bytes where it has none."""
    if checkpoint is None or own_tokenizer(Path(checkpoint).expanduser()) is None:
        return BYTES
    return Path(checkpoint).expanduser()


def _end_of_document(specials: Mapping[str, int]) -> int | None:
    return next((specials[name] for name in END_OF_DOCUMENT_NAMES if name in specials), None)

"""Text to tokens: plain bytes by default, or any `tokenizer.json` of the `tokenizers` package.

Decides which ids a document becomes and which id ends it. A document's own text can never produce a special token:
whatever `<|endoftext|>` stands in it is tokenized as the characters that it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from protocol.errors import ConfigError
from protocol.sequences import token_dtype

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BYTES = "bytes"
MAX_TOKENIZER_BYTES = 256 << 20
MAX_VOCABULARY = 1 << 32
"""Ids that fit into the widest token on the wire."""

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

    def __init__(self, tokenizer_json: bytes) -> None:
        self.tokenizer_json = tokenizer_json
        self.vocab_size, specials = _vocabulary(tokenizer_json, BYTES)
        self.end_of_document: int | None = _end_of_document(specials, BYTES)
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
    """A `tokenizer.json`, as published beside a model."""

    def __init__(self, path: Path) -> None:
        path = path / "tokenizer.json" if path.is_dir() else path
        self.name = path.parent.name if path.name == "tokenizer.json" else path.stem
        self.tokenizer_json = _read(path)
        self.vocab_size, specials = _vocabulary(self.tokenizer_json, str(path))
        self.end_of_document: int | None = _end_of_document(specials, str(path))
        self._dtype = token_dtype(self.vocab_size)
        self._tokenizer = _load(self.tokenizer_json, path)

    def encode(self, documents: Sequence[bytes]) -> list[NDArray[Any]]:
        """See `DocumentTokenizer`."""
        texts = [document.decode("utf-8") for document in documents]
        end = [] if self.end_of_document is None else [self.end_of_document]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids + end, dtype=self._dtype) for encoding in encodings]


def tokenizer_named(tokenizer: str | Path) -> DocumentTokenizer:
    """`bytes`, or a path to a `tokenizer.json` or to a folder that holds one."""
    if tokenizer == BYTES:
        from moe.tokenizer import byte_tokenizer_json

        return ByteTokenizer(byte_tokenizer_json())
    return FileTokenizer(Path(tokenizer))


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise ConfigError(f"tokenizer {path} has more than {MAX_TOKENIZER_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read tokenizer {path}: {error.strerror}; say `bytes`, or give a path") from error


def _load(tokenizer_json: bytes, path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # the package raises bare Exception on a file that it cannot read
        raise ConfigError(f"tokenizer {path}: {error}") from error
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _vocabulary(tokenizer_json: bytes, where: str) -> tuple[int, dict[str, int]]:
    """One more than the largest id, and the special tokens by name."""
    try:
        parsed = json.loads(tokenizer_json)
        vocabulary = parsed["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        added = {str(token["content"]): int(token["id"]) for token in parsed.get("added_tokens") or []}
        special = {str(token["content"]) for token in parsed.get("added_tokens") or [] if token["special"]}
        largest = max(*ids, *added.values(), -1, -1)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ConfigError(f"tokenizer {where} is not a tokenizer.json: {error!r}") from error
    if type(largest) is not int or not 0 <= largest < MAX_VOCABULARY:
        raise ConfigError(f"tokenizer {where} has ids up to {largest!r:.40}, expected up to {MAX_VOCABULARY - 1}")
    return largest + 1, {name: id_ for name, id_ in added.items() if name in special}


def _end_of_document(specials: dict[str, int], where: str) -> int | None:
    for name in END_OF_DOCUMENT_NAMES:
        if name in specials:
            return specials[name]
    if where == BYTES:
        raise ConfigError(f"the byte tokenizer has none of the tokens {', '.join(END_OF_DOCUMENT_NAMES)}")
    return None

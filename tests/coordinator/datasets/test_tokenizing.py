"""Bytes and `tokenizer.json` files; a document can never forge a special token."""

import json

import numpy as np
import pytest

from coordinator.datasets import prepare
from coordinator.datasets.tokenizing import FileTokenizer, tokenizer_named
from protocol.errors import ConfigError


@pytest.fixture
def word_tokenizer(tmp_path):
    """A tokenizer of whole words, as published ones are: with an end-of-text token and a post-processor's extras."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"[UNK]": 0, "hello": 1, "world": 2, "<": 3, "|": 4, "endoftext": 5, ">": 6, "<|endoftext|>": 7}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 7)]
    )
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding()
    folder = tmp_path / "words"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_bytes_are_bytes_and_end_with_the_end():
    tokenizer = tokenizer_named("bytes")
    (tokens,) = tokenizer.encode(["né <|eos|>".encode()])
    assert bytes(tokens[:-1].astype(np.uint8)).decode() == "né <|eos|>"
    assert tokenizer.end_of_document is not None
    assert tokens[-1] == tokenizer.end_of_document >= 256
    assert tokenizer.vocab_size > tokenizer.end_of_document


def test_bytes_agree_with_the_tokenizer_file_that_a_checkpoint_carries(tmp_path):
    tokenizer = tokenizer_named("bytes")
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.tokenizer_json)
    from_file = FileTokenizer(tmp_path)
    documents = [b"plain", "ünïcödé 漢字 🙂\n\t".encode(), b"<|eos|> <|pad|> is text"]
    assert from_file.vocab_size == tokenizer.vocab_size
    for fast, slow in zip(tokenizer.encode(documents), from_file.encode(documents), strict=True):
        assert np.array_equal(fast, slow)


def test_a_published_tokenizer_is_used_whole_and_unadorned(word_tokenizer):
    tokenizer = tokenizer_named(word_tokenizer)
    (tokens,) = tokenizer.encode([b"hello world hello world"])
    assert tokens.tolist() == [1, 2, 1, 2, 7]
    assert tokens.dtype == np.uint8
    assert tokenizer.name == "words"


def test_a_document_cannot_forge_a_special_token(word_tokenizer):
    (tokens,) = tokenizer_named(word_tokenizer).encode([b"hello <|endoftext|> world"])
    assert tokens.tolist()[:-1].count(7) == 0
    assert tokens.tolist()[-1] == 7


def test_dataset_takes_the_narrowest_type(word_tokenizer, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"hello world {name}")
    dataset = prepare([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "out", tokenizer=word_tokenizer)
    assert dataset.dtype == np.uint8
    assert dataset.card.tokenizer == "words"
    assert dataset.tokenizer_json == (word_tokenizer / "tokenizer.json").read_bytes()


def test_without_an_end_token_documents_just_follow_each_other(word_tokenizer):
    path = word_tokenizer / "tokenizer.json"
    parsed = json.loads(path.read_bytes())
    parsed["added_tokens"] = []
    parsed["post_processor"] = None
    path.write_text(json.dumps(parsed))
    tokenizer = tokenizer_named(path)
    assert tokenizer.end_of_document is None
    assert tokenizer.encode([b"hello world"])[0].tolist() == [1, 2]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b'{"model": {"vocab": 3}}',
        b'{"model": {"vocab": {"a": 0}}}',
        b"\xff",
        b'{"model": {"vocab": ' + b"[" * 20_000,
        b'{"model": {"vocab": {"a": 4294967296}}}',
        b'{"model": {"vocab": {"a": 0.5}}}',
        b'{"model": {"vocab": {}}}',
        b'{"model": {"vocab": {}}, "added_tokens": [{"content": "a", "id": Infinity, "special": true}]}',
    ],
    ids=lambda raw: raw[:40],
)
def test_what_is_no_tokenizer_is_refused(tmp_path, raw):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match="tokenizer"):
        tokenizer_named(path)

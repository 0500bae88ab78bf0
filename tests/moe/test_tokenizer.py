from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from moe.tokenizer import BOS_ID, BYTE_VOCAB_SIZE, EOS_ID, PAD_ID, byte_tokenizer_json

TOKENIZER = Tokenizer.from_str(byte_tokenizer_json().decode())


@given(st.text())
def test_ids_are_the_utf8_bytes_and_decode_to_the_text(text):
    ids = TOKENIZER.encode(text).ids
    assert ids == list(text.encode())
    assert TOKENIZER.decode(ids) == text


@given(st.binary())
def test_bytes_read_as_latin_1_come_back(payload):
    text = payload.decode("latin-1")
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids).encode("latin-1") == payload


def test_every_byte_and_special_token_has_its_id():
    assert TOKENIZER.get_vocab_size() == BYTE_VOCAB_SIZE == 264
    assert [TOKENIZER.token_to_id(token) for token in ("<|pad|>", "<|bos|>", "<|eos|>")] == [PAD_ID, BOS_ID, EOS_ID]
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(BYTE_VOCAB_SIZE))
    assert TOKENIZER.encode("a<|eos|>b").ids == [97, EOS_ID, 98]
    assert TOKENIZER.decode([97, EOS_ID, 98]) == "ab"


def test_the_file_is_the_same_each_time():
    assert byte_tokenizer_json() == byte_tokenizer_json()


def test_long_text_takes_no_quadratic_time():
    started = time.thread_time()
    assert len(TOKENIZER.encode("def f(x):\n    return x\n" * 10_000).ids) == 230_000
    assert time.thread_time() - started < 5

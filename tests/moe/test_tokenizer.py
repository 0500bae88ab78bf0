from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from moe.tokenizer import (
    BOS_ID,
    BYTE_VOCAB_SIZE,
    EOS_ID,
    PAD_ID,
    byte_tokenizer_json,
    require_same_tokenizer,
    same_tokenizer,
)
from protocol.errors import ConfigError

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


def changed(**parts: object) -> bytes:
    return json.dumps(json.loads(byte_tokenizer_json()) | parts).encode()


def merged() -> dict[str, object]:
    """The byte tokenizer's vocabulary, and one merge that makes other ids of the same text."""
    model = dict(json.loads(byte_tokenizer_json())["model"])
    model["vocab"] = {**{k: v for k, v in model["vocab"].items() if v < 255}, "er": 255}
    return model | {"merges": [["e", "r"]]}


def test_the_same_tokenizer_may_be_written_down_in_many_ways():
    own = byte_tokenizer_json()
    assert same_tokenizer(own, own)
    assert same_tokenizer(own, json.dumps(json.loads(own), sort_keys=True).encode())
    assert same_tokenizer(own, TOKENIZER.to_str().encode())
    assert same_tokenizer(
        own, changed(truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0})
    )
    assert same_tokenizer(own, changed(normalizer={"type": "Sequence", "normalizers": []}))
    ends = {"single": [{"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {}}
    assert same_tokenizer(own, changed(post_processor={"type": "TemplateProcessing", **ends}))


def test_tokenizers_that_give_other_ids_are_others():
    own, with_merge = byte_tokenizer_json(), changed(model=merged())
    assert not same_tokenizer(own, with_merge)
    assert not same_tokenizer(own, changed(normalizer={"type": "Lowercase"}))
    assert not same_tokenizer(own, changed(normalizer={"type": "NFKC"}))
    assert not same_tokenizer(
        own,
        changed(
            pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
        ),
    )
    assert not same_tokenizer(own, changed(added_tokens=json.loads(own)["added_tokens"][:4]))
    renamed = json.loads(own)["added_tokens"]
    renamed[2]["special"] = False  # now a text can produce it
    assert not same_tokenizer(own, changed(added_tokens=renamed))
    other_merge: dict[str, Any] = merged() | {"merges": [["h", "e"]]}
    other_merge["vocab"] = {("he" if k == "er" else k): v for k, v in other_merge["vocab"].items()}
    assert not same_tokenizer(with_merge, changed(model=other_merge))


class TestAtTheEntrance:
    def ask(self, checkpoint, tokenizer_json=None, room=264):
        return require_same_tokenizer(
            checkpoint, tokenizer_json or byte_tokenizer_json(), data="data", tokenizer="bytes", model_vocab_size=room
        )

    def test_the_same_is_let_in_without_a_word(self, tmp_path):
        (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(byte_tokenizer_json())))
        assert self.ask(tmp_path, room=512) is None  # a vocabulary padded beyond its tokenizer is usual
        assert self.ask(None) is None

    def test_another_is_refused_with_what_to_do(self, tmp_path):
        (tmp_path / "tokenizer.json").write_bytes(changed(model=merged()))
        with pytest.raises(ConfigError, match=r"bytes, 264 tokens.*data prepare TEXT --out FOLDER --tokenizer /"):
            self.ask(tmp_path)

    def test_without_one_nobody_can_tell(self, tmp_path):
        assert "has no tokenizer" in self.ask(tmp_path)
        with pytest.raises(ConfigError, match="264 tokens, the model only 200"):
            self.ask(tmp_path, room=200)
        with pytest.raises(ConfigError, match="264 tokens, the model only 200"):
            self.ask(None, room=200)

    def test_one_in_another_format_is_no_reason_to_guess(self, tmp_path):
        (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
        with pytest.raises(ConfigError, match=r"tokenizer\.model only.*save_pretrained"):
            self.ask(tmp_path)

    def test_a_broken_one_is_named(self, tmp_path):
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(ConfigError, match="not a tokenizer"):
            self.ask(tmp_path)

"""The byte tokenizer, in the format of the `tokenizers` package: ids 0 to 255 are the bytes, then the special tokens.

Decides the byte vocabulary; touches nothing. Holds always: encoding any text and decoding the ids gives the text back,
and the ids of ordinary text are its UTF-8 bytes, so a dataset of bytes needs no tokenizer to be read.
"""

from __future__ import annotations

import json
from typing import Any, Final

PAD_ID: Final = 256
BOS_ID: Final = 257
EOS_ID: Final = 258
SPECIAL_TOKENS: Final = ("<|pad|>", "<|bos|>", "<|eos|>", *(f"<|reserved_{number}|>" for number in range(5)))
"""Reserved ones fill the vocabulary to a multiple of 8, which GPU matrix kernels want."""
BYTE_VOCAB_SIZE: Final = 256 + len(SPECIAL_TOKENS)


def _visible_bytes() -> list[str]:
    """GPT-2's table: each byte as one printable character, printable ones as themselves."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    stand_ins = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(stand_ins)) for byte in range(256)]


def byte_tokenizer_json() -> bytes:
    """tokenizer.json of the byte tokenizer: byte-level BPE without a single merge. The same bytes each time."""
    specials = [
        {
            "id": 256 + number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for number, token in enumerate(SPECIAL_TOKENS)
    ]
    vocabulary = {character: byte for byte, character in enumerate(_visible_bytes())}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    document: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": specials,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }
    return json.dumps(document, ensure_ascii=False, indent=1).encode()


def tokenizer_config(tokenizer_json: bytes, *, max_positions: int) -> dict[str, Any]:
    """tokenizer_config.json that lets AutoTokenizer open `tokenizer_json` with nothing of ours installed."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_positions,
    }
    added = {token["content"] for token in json.loads(tokenizer_json).get("added_tokens", [])}
    for key, token in (("pad_token", "<|pad|>"), ("bos_token", "<|bos|>"), ("eos_token", "<|eos|>")):
        if token in added:
            config[key] = token
    return config

"""Tokenizers in the format of the `tokenizers` package: our own of bytes, and whether two of them are the same.

Decides the byte vocabulary, and when data and a checkpoint go together; reads the checkpoint's file, writes nothing.
Holds always: encoding any text as bytes and decoding the ids gives the text back, and the ids of ordinary text are its
UTF-8 bytes, so a dataset of bytes needs no tokenizer to be read. Two tokenizers are the same if text gets the same ids
from both, however their files are written down; what is put around a text, and how ids are decoded, do not count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE: Final = "tokenizer.json"
MAX_TOKENIZER_BYTES: Final = 256 << 20
MAX_VOCABULARY: Final = 1 << 32
"""Ids that fit into the widest token on the wire."""

OTHER_FORMATS: Final = (
    "tokenizer.model",
    "spiece.model",
    "tekken.json",
    "tiktoken.model",
    "vocab.json",
    "vocab.txt",
)
"""Files by which one sees that a checkpoint has a tokenizer, though not in the one format that is read here."""

_PROBE: Final = (
    "The quick brown fox's 12,345.67 jumps: naïve café — “quotes”…",
    "\n\n\tdef f(x_1, y):\n        return {'a': [x_1, None]}  # TODO\r\n",
    "ﬁ Å A\u030a Ａ １ ½ \u00a0\u200b\ufeff漢字かな 한국어 Привет ελληνικά עברית العربية हिन्दी ไทย 🙂👩\u200d👧",
    "  spaces before,   between and behind   ",
    "WORDS in CAPITALS, snake_case, camelCase, 3.14e-10 0x1F <tag> http://example.org/?q=1&r=2",
)
"""Text on which normalisers and pre-tokenizers differ, if they do."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Which ids a tokenizer gives."""

    ids: Mapping[str, int]
    """Every token, the added ones among them."""
    special: Mapping[str, int]
    """Those that no text can produce."""

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.ids.values()) + 1


def read_vocabulary(tokenizer_json: bytes, where: object) -> Vocabulary:
    """The vocabulary of a tokenizer.json, perhaps a stranger's; ConfigError, naming `where`, if it has none."""
    try:
        parsed = json.loads(tokenizer_json)
        known = parsed["model"]["vocab"]
        ids = dict(known) if isinstance(known, dict) else {str(entry[0]): at for at, entry in enumerate(known)}
        added = {str(token["content"]): (token["id"], token["special"]) for token in parsed.get("added_tokens") or []}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"tokenizer {where} is not a tokenizer.json: it holds no vocabulary that can be read"
        ) from error
    ids |= {token: number for token, (number, _) in added.items()}
    wrong = next((n for n in ids.values() if type(n) is not int or not 0 <= n < MAX_VOCABULARY), None)
    if not ids:
        raise ConfigError(f"tokenizer {where} has an empty vocabulary")
    if wrong is not None:
        raise ConfigError(f"tokenizer {where} has the id {wrong!r:.40}, expected 0 to {MAX_VOCABULARY - 1}")
    return Vocabulary(ids=ids, special={token: number for token, (number, special) in added.items() if special})


def read_tokenizer(path: Path) -> bytes:
    """The bytes of a tokenizer.json; ConfigError when it cannot be read, or is too large to be one."""
    try:
        if not path.is_file():
            raise ConfigError(f"cannot read tokenizer {path}: there is no such file")
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise ConfigError(f"tokenizer {path} has more than {MAX_TOKENIZER_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read tokenizer {path}: {error.strerror}") from error


def load_tokenizer(tokenizer_json: bytes, where: object) -> Tokenizer:
    """The tokenizer as the package opens it, for text alone: a special token's name in it is characters, none are cut.

    ConfigError, naming `where`, if it cannot be opened.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # the package raises bare Exception on a file that it cannot read
        raise ConfigError(f"tokenizer {where} cannot be opened: {error}") from error
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def same_tokenizer(one: bytes, other: bytes) -> bool:
    """Whether two tokenizer.json give the same ids for the same text; ConfigError where one cannot be read."""
    if one == other:
        return True
    if read_vocabulary(one, "one").ids != read_vocabulary(other, "other").ids:
        return False
    first, second = load_tokenizer(one, "one"), load_tokenizer(other, "other")
    # Two versions of the package, or of `transformers`, write the same normaliser in two ways: its effect is compared.
    return _core(first) == _core(second) and _probed(first) == _probed(second)


def _core(tokenizer: Tokenizer) -> tuple[Any, Any]:
    """Model and added tokens, as this version of the package writes them down."""
    written = json.loads(tokenizer.to_str())
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    added = {
        token["content"]: None if token["special"] else [token[flag] for flag in flags]
        for token in written["added_tokens"]
    }
    return written["model"], added


def _probed(tokenizer: Tokenizer) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(list(_PROBE), add_special_tokens=False)]


def own_tokenizer(checkpoint: Path) -> bytes | None:
    """The tokenizer.json of a checkpoint; None where it has no tokenizer. ConfigError where it is not read."""
    path = checkpoint / TOKENIZER_FILE
    if path.is_file():
        return read_tokenizer(path)
    found = next((name for name in OTHER_FORMATS if (checkpoint / name).is_file()), None)
    if found is None:
        return None
    raise ConfigError(
        f"the tokenizer of {checkpoint} is there as {found} only, and {TOKENIZER_FILE} is what is read: open it with "
        "AutoTokenizer.from_pretrained of transformers and save_pretrained it into the same folder"
    )


def require_same_tokenizer(
    checkpoint: Path | None, tokenizer_json: bytes, *, data: str, tokenizer: str, model_vocab_size: int
) -> str | None:
    """Refuse, with a ConfigError, data whose ids mean something else to the model; a sentence where nobody can tell.

    `tokenizer_json` is the data's, `data` and `tokenizer` what a person calls the two. Without a checkpoint (a model
    from scratch) any tokenizer will do that the vocabulary has room for.
    """
    own = None if checkpoint is None else own_tokenizer(checkpoint)
    size = read_vocabulary(tokenizer_json, f"of {data}").size
    if own is not None and not same_tokenizer(own, tokenizer_json):
        raise ConfigError(
            f"{data} was prepared with another tokenizer ({tokenizer}, {size} tokens) than that of {checkpoint}: its "
            "ids would mean other text to this model. Prepare the text again, `barnraise data prepare TEXT --out "
            f"FOLDER --tokenizer {checkpoint}`, or give the text itself as --data"
        )
    if size > model_vocab_size:
        raise ConfigError(
            f"the tokenizer of {data} ({tokenizer}) has {size} tokens, the model only {model_vocab_size}: prepare the "
            "text with the model's own tokenizer, or choose another model"
        )
    if checkpoint is None or own is not None:
        return None
    return (
        f"{checkpoint} has no tokenizer, so nobody can tell whether {data} ({tokenizer}, {size} tokens) was prepared "
        "with the one that the model was trained with"
    )

"""What stands beside the weights: it comes back with every export, nothing in it runs, and nothing else is kept."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from moe.companions import companions_of, end_of_text, read_companions, write_companions
from moe.export import export_checkpoint
from moe.full import initial_blocks
from moe.layout import Layout, layout
from moe.tokenizer import byte_tokenizer_json
from protocol.errors import ConfigError
from protocol.residency import FROZEN

TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
GENERATION = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": [40, 42], "pad_token_id": 42}


def strangers_tokenizer(folder: Path) -> Path:
    """Words, special tokens with names and ids that are not ours, and a chat template."""
    raw = Tokenizer(models.WordLevel({"[UNK]": 0, **{f"w{n}": n for n in range(1, 40)}}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.add_special_tokens([AddedToken(name, special=True) for name in ("<end>", "<begin>", "<fill>", "<tool>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<end>",
        bos_token="<begin>",
        pad_token="<fill>",
        unk_token="[UNK]",
        additional_special_tokens=["<tool>"],
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder


@pytest.fixture
def cut(small_config: Any) -> Layout:
    config = small_config("olmoe")
    config.eos_token_id, config.bos_token_id, config.pad_token_id = [40, 42], 41, 42
    return layout(config, FROZEN)


def exported(cut: Layout, folder: Path, companions: dict[str, bytes]) -> Path:
    from moe.config import config_from_json

    export_checkpoint(initial_blocks(config_from_json(cut.config_json), cut, 1), cut, folder, companions=companions)
    return folder


def told(folder: Path) -> tuple[Any, ...]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token, tokenizer.unk_token)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "w1 w2"}], tokenize=False)
    return (*names, sorted(tokenizer.all_special_tokens), chat, tokenizer("w1 w2 <end>")["input_ids"])


def test_what_the_checkpoint_had_comes_back(cut: Layout, tmp_path: Path) -> None:
    given = strangers_tokenizer(tmp_path / "given")
    out = exported(cut, tmp_path / "out", read_companions(given))
    assert told(out) == told(given)
    assert json.loads((out / "generation_config.json").read_text()) == GENERATION
    found = GenerationConfig.from_pretrained(out)
    assert (found.do_sample, found.temperature, found.top_p, found.eos_token_id) == (True, 0.6, 0.95, [40, 42])
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == [40, 42]


def test_a_bare_tokenizer_gets_its_special_tokens_by_the_ids_of_the_model(cut: Layout, tmp_path: Path) -> None:
    given = strangers_tokenizer(tmp_path / "given")
    out = exported(cut, tmp_path / "out", {"tokenizer.json": (given / "tokenizer.json").read_bytes()})
    tokenizer = AutoTokenizer.from_pretrained(out)
    named = (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert named == ("<end>", "<begin>", "<fill>", "[UNK]")
    assert tokenizer(["w1", "w1 w2 w3"], padding=True)["input_ids"][0] == [1, 42, 42]
    assert GenerationConfig.from_pretrained(out).eos_token_id == [40, 42]


def test_only_known_files_are_kept_and_nothing_that_names_code_or_places(tmp_path: Path) -> None:
    given = strangers_tokenizer(tmp_path / "given")
    config = given / "tokenizer_config.json"
    extra = {
        "auto_map": {"AutoTokenizer": ["mine.MyTokenizer", None]},
        "tokenizer_class": "MyTokenizer",
        "name_or_path": "/home/somebody/model",
    }
    config.write_text(json.dumps(json.loads(config.read_text()) | extra))
    (given / "generation_config.json").write_text(json.dumps(GENERATION | {"custom_generate": "owner/code"}))
    (given / "mine.py").write_text("raise SystemExit('ran')")
    (given / "config.json").write_text("{}")
    kept = read_companions(given)
    assert {"mine.py", "config.json"} & set(kept) == set()
    assert not [name for name, content in kept.items() if b"mine" in content or b"somebody" in content]
    assert json.loads(kept["tokenizer_config.json"])["eos_token"] == "<end>"
    assert json.loads(kept["generation_config.json"]) == GENERATION
    write_companions(kept, tmp_path / "kept")
    assert AutoTokenizer.from_pretrained(tmp_path / "kept").eos_token == "<end>"
    with pytest.raises(ConfigError, match="not among the files"):
        write_companions({"../mine.py": b""}, tmp_path / "kept")


def test_files_that_cannot_be_what_they_are_called_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    for text in ("", "[1]", "[" * 20_000):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"generation_config\.json is not"):
            read_companions(tmp_path)
    with path.open("wb") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(ConfigError, match="more than 1 MiB"):
        read_companions(tmp_path)
    path.unlink()
    os.mkfifo(path)  # reading it would wait for ever
    assert read_companions(tmp_path) == {}


def test_a_checkpoint_without_a_tokenizer_carries_that_of_the_data(tmp_path: Path) -> None:
    data = {"tokenizer.json": byte_tokenizer_json(), "generation_config.json": b"{}"}
    (tmp_path / "generation_config.json").write_text(json.dumps(GENERATION))
    kept = companions_of(tmp_path, data)
    assert kept["tokenizer.json"] == data["tokenizer.json"]
    assert json.loads(kept["generation_config.json"]) == GENERATION
    given = strangers_tokenizer(tmp_path / "given")
    assert companions_of(given, data) == read_companions(given)
    assert companions_of(None, data) == data


def test_the_end_of_a_text_is_known_from_either_file() -> None:
    assert end_of_text({"tokenizer_config.json": b'{"eos_token": {"content": "<end>"}}'}) == "<end>"
    assert end_of_text({"special_tokens_map.json": b'{"eos_token": "<end>"}'}) == "<end>"
    assert end_of_text({"tokenizer_config.json": b'{"eos_token": null}'}) is None
    assert end_of_text({}) is None

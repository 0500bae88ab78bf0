"""What writes text with its experts on the disk: what comes out is what `transformers` writes with all in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM

from moe.companions import read_companions
from moe.export import export_checkpoint
from moe.families import Family
from moe.full import full_model, initial_blocks
from moe.layout import Layout, layout
from moe.on_demand import OnDemandStore, as_frozen, on_demand_model
from moe.presets import preset
from moe.sampling import Chance, Writer, writer_of_blocks, writer_of_checkpoint
from moe.tokenizer import TOKENIZER_FILE, byte_tokenizer_json
from protocol.errors import ConfigError
from protocol.ids import TRUNK, column_block
from protocol.residency import ABSENT, FROZEN
from tests.moe.conftest import BUILDERS, fresh
from tests.moe.test_companions import exported, strangers_tokenizer

GREEDY = Chance(temperature=0.0)
PROMPT = torch.tensor([[100, 101, 102, 32]])
TEXT = "def "


def generated(model: Any, tokens: int = 6) -> list[int]:
    """Greedy, by `transformers`."""
    ids = PROMPT.to(torch.long)
    with torch.inference_mode():
        written = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
        )
    return list(written[0].tolist())


@pytest.mark.parametrize("residency", [FROZEN], indirect=True)
def test_every_family_writes_what_it_writes_with_all_in_memory(family: Family, cut: Layout) -> None:
    blocks = fresh(cut)
    assert generated(on_demand_model(cut, blocks, torch.float32)) == generated(full_model(cut, blocks)), family


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ["olmoe", "qwen3_moe"], indirect=True)
def test_a_checkpoint_writes_what_transformers_writes(tmp_path: Path, config: Any, dtype: str) -> None:
    cut = layout(config, FROZEN)
    export_checkpoint(initial_blocks(config, cut, 9), cut, tmp_path / "out", dtype=dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert (model.dtype == torch.bfloat16) == (dtype == "bf16")
    writer = writer_of_checkpoint(tmp_path / "out")
    assert generated(writer._model) == generated(model)


def read_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Fills with every matrix that is read."""
    read: list[tuple[str, int]] = []
    own = OnDemandStore._read

    def counted(self: Any, matrix: Any, memory: Any) -> Any:
        read.append(tuple(matrix))
        return own(self, matrix, memory)

    monkeypatch.setattr(OnDemandStore, "_read", counted)
    return read


def test_only_experts_that_a_token_goes_to_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    config = BUILDERS["olmoe"]()
    cut = layout(config, FROZEN)
    read = read_of(monkeypatch)
    model: Any = on_demand_model(cut, initial_blocks(config, cut, 9), torch.float32)
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert held < 1.1 * cut.block_bytes(TRUNK)
    assert not read
    with torch.inference_mode():
        for _ in range(2):
            model(input_ids=PROMPT[:, :1])
            assert len(read) == len(set(read)) == cut.expert_layers * cut.top_k * 2  # into the chosen ones and out
            read.clear()


@pytest.mark.parametrize(("matrices", "again"), [(1, 36), (12, 30), (100, 0)])
def test_what_was_read_last_is_kept_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, matrices: int, again: int
) -> None:
    config = BUILDERS["olmoe"]()
    cut = layout(config, FROZEN)
    read, blocks = read_of(monkeypatch), initial_blocks(config, cut, 9)
    largest = max(spec.payload_bytes for spec in cut.column)
    model: Any = on_demand_model(cut, blocks, torch.float32, kept_bytes=matrices * largest)
    whole: Any = full_model(cut, blocks)
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        model(input_ids=ids)
        read.clear()
        torch.testing.assert_close(model(input_ids=ids).logits, whole(input_ids=ids).logits)
    assert len(read) <= again
    assert bool(read) == bool(again)


def test_a_run_with_absent_columns_is_put_together(small_config: Any) -> None:
    config = small_config("olmoe")
    cut = layout(config, ABSENT)
    blocks = initial_blocks(config, cut, 9)
    whole, there = as_frozen(cut, blocks)
    assert generated(on_demand_model(whole, there, torch.float32)) == generated(full_model(cut, blocks))


def test_columns_cut_into_parts_are_read_where_they_lie(small_config: Any) -> None:
    config = small_config("olmoe")
    cut = layout(config, FROZEN, 2)
    blocks = initial_blocks(config, cut, 9)
    assert generated(on_demand_model(cut, blocks, torch.float32)) == generated(full_model(cut, blocks))


class TestWriter:
    @pytest.fixture
    def writer(self, small_config: Any) -> Writer:
        config = small_config("olmoe")
        cut = layout(config, FROZEN)
        return writer_of_blocks(cut, initial_blocks(config, cut, 9), {TOKENIZER_FILE: byte_tokenizer_json()}, "here")

    def test_text_is_decided_by_its_seed(self, writer: Writer) -> None:
        first = writer.write(TEXT, 12, Chance(seed=1))
        state = torch.random.get_rng_state()
        assert first.text == writer.write(TEXT, 12, Chance(seed=1)).text
        assert first.text != writer.write(TEXT, 12, Chance(seed=2)).text
        assert torch.equal(state, torch.random.get_rng_state())
        assert writer.write("", 4, GREEDY).text == writer.write("", 4, Chance(seed=2, temperature=0.0)).text

    def test_a_small_top_p_is_greedy(self, writer: Writer) -> None:
        assert writer.write(TEXT, 8, Chance(seed=3, top_p=1e-6)).text == writer.write(TEXT, 8, GREEDY).text

    def test_what_is_told_on_the_way_is_what_comes(self, writer: Writer) -> None:
        told: list[str] = []
        written = writer.write(TEXT, 24, Chance(seed=1, temperature=3.0), told.append)
        assert "".join(told) == written.text
        assert len(told) > 1
        assert written.prompt_tokens == len(TEXT)
        assert 1 < written.tokens <= 24

    def test_it_stops_where_the_model_reads_no_further(self, writer: Writer) -> None:
        assert writer.write("x" * 120, 50, Chance(seed=4, temperature=3.0)).tokens <= 8
        with pytest.raises(ConfigError, match="reads at most 128"):
            writer.write("x" * 128, 1, GREEDY)

    def test_a_model_that_went_wrong_says_so(self, small_config: Any) -> None:
        config = small_config("olmoe")
        cut = layout(config, FROZEN)
        blocks = initial_blocks(config, cut, 9)
        for tensor in blocks[column_block(0)].values():
            tensor.fill_(float("nan"))
        for column in range(1, cut.columns):
            blocks[column_block(column)] = blocks[column_block(0)]
        writer = writer_of_blocks(cut, blocks, {TOKENIZER_FILE: byte_tokenizer_json()}, "here")
        with pytest.raises(ConfigError, match="not finite"):
            writer.write(TEXT, 3, GREEDY)


class TestPrompts:
    @pytest.fixture
    def cut(self, small_config: Any) -> Layout:
        return layout(small_config("olmoe"), FROZEN)

    @pytest.mark.parametrize("prompt", ["", "\n", "   ", "caf\udce9", "w1 \ud83d\ude42 w2"])
    def test_any_prompt_is_gone_on_from(self, cut: Layout, tmp_path: Path, prompt: str) -> None:
        out = exported(cut, tmp_path / "out", read_companions(strangers_tokenizer(tmp_path / "given")))
        assert isinstance(writer_of_checkpoint(out).write(prompt, 3, Chance()).text, str)

    def test_without_a_token_to_begin_with_it_says_so(self, small_config: Any, tmp_path: Path) -> None:
        config = small_config("olmoe")
        config.eos_token_id = config.bos_token_id = config.pad_token_id = None
        raw = Tokenizer(models.WordLevel({"[UNK]": 0, "w1": 1}, unk_token="[UNK]"))
        raw.pre_tokenizer = pre_tokenizers.Whitespace()
        out = exported(layout(config, FROZEN), tmp_path / "out", {"tokenizer.json": raw.to_str().encode()})
        writer = writer_of_checkpoint(out)
        assert isinstance(writer.write("w1", 3, Chance()).text, str)
        with pytest.raises(ConfigError, match="give a longer --prompt"):
            writer.write("", 3, Chance())

    def test_a_checkpoint_without_a_tokenizer_says_what_to_name(self, tmp_path: Path) -> None:
        config = preset("tiny")
        cut = layout(config, FROZEN)
        export_checkpoint(initial_blocks(config, cut, 1), cut, tmp_path / "out")
        whole = tmp_path / "whole"
        (tmp_path / "out").rename(whole)
        export_checkpoint(initial_blocks(config, cut, 1), cut, tmp_path / "out")
        for path in (tmp_path / "out").glob("tokenizer*"):
            path.unlink()
        with pytest.raises(ConfigError, match="--tokenizer"):
            writer_of_checkpoint(tmp_path / "out")
        assert writer_of_checkpoint(tmp_path / "out", tokenizer=whole).write("a", 2, GREEDY).tokens

"""Training on from somebody's checkpoint: its tokenizer or a refusal everywhere, and all of it in exports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from barnraise.cli.app import run
from coordinator.beginning import GOING_ON
from coordinator.datasets import Dataset, prepare
from coordinator.run.folder import RunFolder, init_run
from coordinator.run.opened import OpenedRun
from coordinator.settings import RunSettings
from moe.stored import StoredTensor
from simulator.virtual.swarm import STILL

torch.set_num_threads(1)

GENERATION = {"do_sample": True, "temperature": 0.6, "top_k": 20, "eos_token_id": [40, 41]}
SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 40,
}
SMALL = ("--sequence-length", "16", "--inner-steps", "1", "--batch", "1")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for number in range(60):
        (folder / f"{number}.txt").write_text(f"w{number % 39 + 1} w2 w3 some words of {number} " * 40)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In bf16, with a tokenizer of words whose text ends in a token of an unusual name."""
    folder = tmp_path_factory.mktemp("published") / "model"
    raw = Tokenizer(models.WordLevel({"[UNK]": 0, **{f"w{n}": n for n in range(1, 40)}}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.add_special_tokens([AddedToken(name, special=True) for name in ("<end>", "<fill>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<fill>", unk_token="[UNK]")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<end>{% endfor %}"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model: Any = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE))
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder


@pytest.fixture(scope="module")
def in_bytes(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text as `data prepare` makes it of itself: fewer tokens than the model has, and other ones."""
    return prepare([text], tmp_path_factory.mktemp("bytes")).folder


def told(folder: Path) -> tuple[Any, ...]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "w1"}], tokenize=False)
    generation = GenerationConfig.from_pretrained(folder)
    sampling = (generation.do_sample, generation.temperature, generation.top_k, generation.eos_token_id)
    return (
        tokenizer.eos_token,
        tokenizer.pad_token,
        tokenizer.unk_token,
        tokenizer("w1 w2")["input_ids"],
        chat,
        sampling,
    )


@pytest.mark.parametrize("entrance", ["init", "pretrain", "evaluate"])
def test_data_of_another_tokenizer_is_refused(
    entrance: str, checkpoint: Path, in_bytes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(in_bytes)]
    command = {
        "init": ["coordinator", "init", str(tmp_path / "run"), "--checkpoint", str(checkpoint), *SMALL, *data],
        "pretrain": [
            "pretrain",
            "--out",
            str(tmp_path / "out"),
            "--checkpoint",
            str(checkpoint),
            "--steps",
            "1",
            *data,
        ],
        "evaluate": ["evaluate", str(checkpoint), *data],
    }[entrance]
    assert run(command) == 2
    said = capsys.readouterr().err
    assert "another tokenizer (bytes, 264 tokens)" in said
    assert f"barnraise data prepare TEXT --out FOLDER --tokenizer {checkpoint}" in said
    assert len(said.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prepared", [False, True])
def test_a_run_exports_what_the_checkpoint_had(
    prepared: bool, checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(text)
    if prepared:
        data = str(tmp_path / "data")
        assert run(["data", "prepare", str(text), "--out", data, "--tokenizer", str(checkpoint)]) == 0
    begin = ["coordinator", "init", str(tmp_path / "run"), "--checkpoint", str(checkpoint), "--data", data, *SMALL]
    assert run(begin) == 0
    folder = RunFolder.open(tmp_path / "run")
    assert folder.dataset().card.tokenizer == "model"
    assert folder.dataset().card.end_of_document == 40, "a text ends as the checkpoint's texts do"
    shutil.rmtree(folder.dataset().folder / "tokenizer")  # a run does not need the dataset's for its exports
    assert run(["coordinator", "backup", str(folder.root), str(tmp_path / "backup")]) == 0
    assert run(["coordinator", "restore", str(tmp_path / "backup"), str(tmp_path / "again")]) == 0
    for root in ("run", "again"):
        capsys.readouterr()
        assert run(["coordinator", "export", str(tmp_path / root), str(tmp_path / f"{root}-out"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["dtype"] == "bf16"
        assert told(tmp_path / f"{root}-out") == told(checkpoint)
    given, out = (AutoModelForCausalLM.from_pretrained(place) for place in (checkpoint, tmp_path / "run-out"))
    assert {tensor.dtype for tensor in out.parameters()} == {torch.bfloat16}
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), out.parameters(), strict=True))


def test_a_plan_reads_headers_alone(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a plan needs no values")

    monkeypatch.setattr(StoredTensor, "read", refuse)
    assert run(["plan", "--checkpoint", str(checkpoint), "--json"]) == 0
    read = json.loads(capsys.readouterr().out)["read"]
    weights = checkpoint / "model.safetensors"
    headers = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    assert read["read_bytes"] == headers + (checkpoint / "config.json").stat().st_size
    assert read["read_bytes"] + read["weights_bytes"] == sum(
        path.stat().st_size for path in (weights, checkpoint / "config.json")
    )
    assert read["seconds"] > 0
    assert run(["plan", "--checkpoint", str(checkpoint)]) == 0
    assert "of headers and configuration in" in capsys.readouterr().out.splitlines()[0]


def test_stopped_while_it_is_read_nothing_is_left_and_how_far_it_is_was_told(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    prepared = prepare([text], tmp_path / "data", tokenizer=checkpoint).folder
    settings = RunSettings(checkpoint=str(checkpoint), data=str(prepared), sequence_length=16)
    heard: list[str] = []

    def told(sentence: str) -> None:
        heard.append(sentence)
        if sentence.startswith("encoding"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        init_run(tmp_path / "run", settings, told=told)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert heard[0].startswith("reading the checkpoint: ")
    assert heard[-1].endswith(": 1 of 4")
    done, _, total = heard[-2].removeprefix("reading the checkpoint: ").partition(" of ")
    assert done == total, "all of it was read, and no tensor twice"
    init_run(tmp_path / "run", settings, told=heard.append)
    assert heard[-1].endswith(": 4 of 4")


def test_python_and_the_command_begin_at_the_same_gentle_rates(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    prepared = str(tmp_path / "data")
    assert run(["data", "prepare", str(text), "--out", prepared, "--tokenizer", str(checkpoint)]) == 0
    begin = ["coordinator", "init", str(tmp_path / "told"), "--checkpoint", str(checkpoint), "--data", prepared, *SMALL]
    assert run(begin) == 0
    by_command = RunFolder.open(tmp_path / "told").settings()
    stripped = {key: value for key, value in by_command.engine.items() if key != "inner"}
    kept = {key: value for key, value in by_command.engine["inner"].items() if key not in GOING_ON}
    bare = by_command.model_copy(update={"engine": {**stripped, "inner": kept}})
    by_python = init_run(tmp_path / "called", bare)
    assert by_python.settings() == by_command
    assert by_python.settings().engine["inner"]["learning_rate"] == GOING_ON["learning_rate"]


def test_the_type_of_an_export_is_chosen(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    begin = ["coordinator", "init", str(tmp_path / "run"), "--checkpoint", str(checkpoint), "--data", str(text), *SMALL]
    assert run(begin) == 0
    sizes = {}
    for dtype, kept in (("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)):
        out = tmp_path / dtype
        assert run(["coordinator", "export", str(tmp_path / "run"), str(out), "--dtype", dtype]) == 0
        sizes[dtype] = (out / "model.safetensors").stat().st_size
        assert AutoModelForCausalLM.from_pretrained(out).dtype == kept
    assert sizes["fp16"] == pytest.approx(sizes["bf16"], rel=0.01)
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    assert run(["coordinator", "export", str(tmp_path / "run"), str(tmp_path / "no"), "--dtype", "int4"]) == 2
    assert not (tmp_path / "no").exists()


def test_rotating_checkpoints_carry_it_as_well(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    begin = ["coordinator", "init", str(tmp_path / "run"), "--checkpoint", str(checkpoint), "--data", str(text), *SMALL]
    assert run(begin) == 0
    from coordinator.engine.commands import WriteCheckpoint
    from coordinator.engine.events import CheckpointWritten
    from protocol.ids import Version

    opened = OpenedRun.open(RunFolder.open(tmp_path / "run"), STILL)
    try:
        manifest = opened.versions.manifest_digest(0)
        assert manifest is not None
        written = opened.executor.execute(WriteCheckpoint(command_id="c", version=Version(0), manifest=manifest))
    finally:
        opened.close()
    assert isinstance(written, CheckpointWritten)
    out = Path(written.path)
    assert told(out) == told(checkpoint)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_pretraining_goes_on_with_it(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    steps = ["--steps", "1", "--batch", "2", "--sequence-length", "16", "--device", "cpu"]
    begin = ["pretrain", "--checkpoint", str(checkpoint), "--data", str(text), *steps]
    assert run([*begin, "--out", str(tmp_path / "out")]) == 0
    assert told(tmp_path / "out") == told(checkpoint)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert run([*begin, "--out", str(tmp_path / "wide"), "--dtype", "fp32"]) == 0
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"
    assert run([*begin, "--out", str(tmp_path / "no"), "--dtype", "int4"]) == 2


def test_a_checkpoint_without_a_tokenizer_is_taken_with_a_note(
    checkpoint: Path, in_bytes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (bare / name).unlink()
    begin = ["coordinator", "init", str(tmp_path / "run"), "--checkpoint", str(bare), "--data", str(in_bytes), *SMALL]
    assert run(begin) == 0
    assert f"note: {bare} has no tokenizer" in capsys.readouterr().err
    assert run(["coordinator", "export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("ab")["input_ids"] == [97, 98]


def test_prepared_data_takes_what_was_asked_for_last(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    bare = prepare([text], tmp_path / "data", tokenizer=checkpoint / "tokenizer.json")
    assert set(bare.companions) == {"tokenizer.json"}
    shutil.copytree(checkpoint, tmp_path / "copy")
    (tmp_path / "copy" / "generation_config.json").write_text('{"top_k": 7}')
    for folder, top_k in ((checkpoint, 20), (tmp_path / "copy", 7), (tmp_path / "copy", 7)):
        made = prepare([text], tmp_path / "data", tokenizer=folder)
        assert json.loads(Dataset.open(made.folder).companions["generation_config.json"])["top_k"] == top_k
        assert {path.name for path in (tmp_path / "data").iterdir()} <= {bare.digest, made.digest}


def test_a_checkpoint_of_bytes_is_prepared_as_bytes(in_bytes: Path, text: Path, tmp_path: Path) -> None:
    steps = ["--steps", "1", "--batch", "2", "--sequence-length", "16", "--device", "cpu"]
    assert run(["pretrain", "--data", str(in_bytes), "--out", str(tmp_path / "warm"), *steps]) == 0
    same = prepare([text], tmp_path / "data", tokenizer=tmp_path / "warm")
    assert same.digest == Dataset.open(in_bytes).digest
    begin = ["coordinator", "init", str(tmp_path / "run"), "--checkpoint", str(tmp_path / "warm"), *SMALL]
    assert run([*begin, "--data", str(in_bytes)]) == 0

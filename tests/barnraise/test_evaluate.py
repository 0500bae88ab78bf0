"""`barnraise evaluate` and `sample`: the figures are validation's, and what does not go together is one sentence."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from barnraise.cli.app import run
from barnraise.evaluation import evaluate
from coordinator.datasets import Dataset, prepare
from moe.export import export_checkpoint
from moe.full import evaluate_loss, full_model, initial_blocks
from moe.layout import layout
from moe.presets import preset
from moe.tokenizer import byte_tokenizer_json
from protocol.errors import ConfigError
from protocol.ids import TRUNK
from protocol.residency import FROZEN
from protocol.terminal import EXIT_INTERRUPTED

torch.set_num_threads(1)

# 256 bytes and one merge: other ids for the same text, fitting the same model.
OTHER_TOKENIZER = json.loads(byte_tokenizer_json())
OTHER_TOKENIZER["model"] |= {"merges": [["e", "r"]]}
OTHER_TOKENIZER["model"]["vocab"] = {
    "er": 255,
    **{k: v for k, v in OTHER_TOKENIZER["model"]["vocab"].items() if v < 255},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for number in range(24):
        (folder / f"{number}.txt").write_text(f"page {number}: " + "words and other words\n" * (30 + number))
    return folder


@pytest.fixture(scope="module")
def dataset(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare([text], tmp_path_factory.mktemp("data"), heldout_share=0.3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    cut = layout(preset("tiny"), FROZEN)
    export_checkpoint(initial_blocks(preset("tiny"), cut, 4), cut, folder)
    return folder


def copied(checkpoint: Path, to: Path) -> Path:
    shutil.copytree(checkpoint, to)
    return to


def test_the_figures_are_those_of_validation(checkpoint: Path, dataset: Dataset) -> None:
    found = evaluate(checkpoint, str(dataset.folder), sequence_length=32, limit=12, batch=5)
    tokens = torch.from_numpy(dataset.heldout_all(32, 12).astype("int64"))
    cut = layout(preset("tiny"), FROZEN)
    loss, loss_se = evaluate_loss(full_model(cut, initial_blocks(preset("tiny"), cut, 4)), tokens, 12)
    assert (found.loss, found.loss_se) == pytest.approx((loss, loss_se), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    assert found.perplexity_se == pytest.approx(math.exp(loss) * loss_se, rel=1e-5)
    assert (found.sequences, found.tokens) == (12, 12 * 32)
    assert found.heldout_sequences == dataset.heldout_sequences(32)
    assert found.health.drift is None


def test_bits_a_byte_are_counted_exactly_with_bytes(checkpoint: Path, dataset: Dataset) -> None:
    found = evaluate(checkpoint, str(dataset.folder), sequence_length=32)
    targets = dataset.heldout_all(32)[:, 1:]
    ends = int((targets >= 256).sum())
    assert ends > 0  # ends of documents are predicted, but are no bytes
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2) * targets.size / (targets.size - ends))
    assert found.bytes_exact


def test_without_a_limit_everything_is_read(checkpoint: Path, dataset: Dataset) -> None:
    found = evaluate(checkpoint, str(dataset.folder), sequence_length=64)
    assert found.sequences == found.heldout_sequences == dataset.heldout_sequences(64)


def test_text_is_tokenized_with_the_checkpoints_own_tokenizer(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    other = copied(checkpoint, tmp_path / "checkpoint")
    (other / "tokenizer.json").write_text(json.dumps(OTHER_TOKENIZER))
    bytes_ = evaluate(checkpoint, str(text), sequence_length=16)
    merged = evaluate(other, str(text), sequence_length=16)
    assert bytes_.tokenizer == "bytes"
    assert merged.tokenizer == "checkpoint"
    assert merged.dataset != bytes_.dataset
    assert not merged.bytes_exact
    assert merged.bits_per_byte is not None
    # A merged token stands for more than a byte, so its bits are spread over more of them.
    assert merged.bits_per_byte / merged.loss < bytes_.bits_per_byte / bytes_.loss  # type: ignore[operator]


def test_text_and_prepared_text_give_the_same_figures(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    prepared = prepare([text], tmp_path)
    given = evaluate(checkpoint, str(text), sequence_length=16, limit=4)
    assert given.dataset == prepared.digest
    assert given.loss == evaluate(checkpoint, str(prepared.folder), sequence_length=16, limit=4).loss


def test_another_tokenizer_is_refused(checkpoint: Path, dataset: Dataset, tmp_path: Path) -> None:
    other = copied(checkpoint, tmp_path / "checkpoint")
    (other / "tokenizer.json").write_text(json.dumps(OTHER_TOKENIZER))
    with pytest.raises(ConfigError, match=r"another tokenizer \(bytes, 264 tokens\) .* --tokenizer"):
        evaluate(other, str(dataset.folder))


def test_the_same_tokenizer_written_otherwise_is_not(checkpoint: Path, dataset: Dataset, tmp_path: Path) -> None:
    same = copied(checkpoint, tmp_path / "checkpoint")
    (same / "tokenizer.json").write_text(json.dumps(json.loads(byte_tokenizer_json()), sort_keys=True))
    expected = evaluate(checkpoint, str(dataset.folder), sequence_length=16, limit=4).loss
    assert evaluate(same, str(dataset.folder), sequence_length=16, limit=4).loss == expected
    (same / "tokenizer.json").unlink()
    noted: list[str] = []
    found = evaluate(same, str(dataset.folder), sequence_length=16, limit=4, note=noted.append)
    assert found.loss == expected
    assert [f"{same} has no tokenizer" in sentence for sentence in noted] == [True]


def test_a_dataset_with_more_tokens_than_the_model_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    config = preset("tiny", vocab_size=200)
    cut = layout(config, FROZEN)
    small = dict(json.loads(byte_tokenizer_json()), added_tokens=[])
    small["model"]["vocab"] = {key: value for key, value in small["model"]["vocab"].items() if value < 200}
    export_checkpoint(
        initial_blocks(config, cut, 1), cut, tmp_path / "c", companions={"tokenizer.json": json.dumps(small).encode()}
    )
    with pytest.raises(ConfigError, match="another tokenizer"):
        evaluate(tmp_path / "c", str(dataset.folder))
    (tmp_path / "c" / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="264 tokens, the model only 200"):
        evaluate(tmp_path / "c", str(dataset.folder))


def test_people_and_machines_get_the_same_figures(
    checkpoint: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(checkpoint), "--data", str(dataset.folder), "--sequence-length", "16", "--health"]
    assert run([*command, "--json", "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    whole = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert whole["loss"] == found["loss"]
    assert "cosine" in whole["health"]["layers"][0]
    assert (tmp_path / "out" / "health.png").read_bytes().startswith(b"\x89PNG")
    assert found["health"]["drift"]["column_sets"] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert run(command) == 0
    told = capsys.readouterr()
    assert f"{found['loss']:.4f} ± {found['loss_se']:.4f}" in told.out
    assert "with 4 of 8 columns there" in told.out
    assert "columns' loads: " in told.out
    assert told.err == ""  # nobody looks at it: no progress


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sequence-length", "100000"], "at most 1024 positions"),
        (["--sequence-length", "1000", "--limit", "0"], "held-out"),
        (["--device", "abacus"], "auto, cpu, cuda"),
        (["--device", "cuda:99"], "CUDA GPUs"),
        (["--health", "--columns", "9"], "2 (top-k) to 8"),
        (["--health", "--columns", "1"], "2 (top-k) to 8"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(
    options: list[str], says: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.txt").write_text("two\n")
    assert run(["evaluate", str(checkpoint), "--data", str(tmp_path), *options]) == 2
    told = capsys.readouterr()
    assert says in told.err
    assert len(told.err.strip().splitlines()) == 1


def test_a_folder_that_only_looks_like_a_checkpoint_is_refused(
    checkpoint: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = copied(checkpoint, tmp_path / "torn")
    (torn / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes()[:1000])
    assert run(["evaluate", str(torn), "--data", str(dataset.folder)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    (torn / "model.safetensors").unlink()
    assert run(["evaluate", str(torn), "--data", str(dataset.folder)]) == 2
    assert "no .safetensors" in capsys.readouterr().err


def test_ctrl_c_leaves_nothing_behind(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def interrupted(*_: object, **__: object) -> None:
        assert len(list(tmp_path.iterdir())) == 1  # the text is being tokenized in there
        raise KeyboardInterrupt

    monkeypatch.setattr("barnraise.evaluation.open_or_prepare", interrupted)
    assert run(["evaluate", str(checkpoint), "--data", str(text)]) == EXIT_INTERRUPTED
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in capsys.readouterr().err


@pytest.fixture
def broken(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint whose training went to infinity."""
    cut = layout(preset("tiny"), FROZEN)
    blocks = initial_blocks(preset("tiny"), cut, 4)
    blocks[TRUNK]["model.norm.weight"].fill_(math.nan)
    export_checkpoint(blocks, cut, tmp_path / "broken")
    return tmp_path / "broken"


def test_a_broken_model_is_evaluated_all_the_same(
    broken: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(broken), "--data", str(dataset.folder), "--limit", "4", "--health"]
    assert run([*command, "--json", "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] is None
    assert found["perplexity"] is None
    assert run(command) == 0
    assert "nan" in capsys.readouterr().out


def test_a_huge_loss_has_an_infinite_perplexity(dataset: Dataset, tmp_path: Path) -> None:
    cut = layout(preset("tiny"), FROZEN)
    blocks = initial_blocks(preset("tiny"), cut, 4)
    blocks[TRUNK]["lm_head.weight"].mul_(1e6)
    export_checkpoint(blocks, cut, tmp_path / "loud")
    found = evaluate(tmp_path / "loud", str(dataset.folder), sequence_length=16, limit=2)
    assert math.isfinite(found.loss)
    assert found.perplexity == math.inf
    assert found.as_dict()["perplexity"] is None


def test_with_experts_on_the_disk_the_figures_are_the_same(checkpoint: Path, dataset: Dataset) -> None:
    whole, read = (
        evaluate(checkpoint, str(dataset.folder), sequence_length=16, limit=4, drift=True, memory_bytes=memory)
        for memory in (None, 0)
    )
    assert read.loss == pytest.approx(whole.loss, rel=1e-6)
    assert read.health.layers[0].routed == whole.health.layers[0].routed
    assert read.health.layers[1].cosine[1][0] == pytest.approx(whole.health.layers[1].cosine[1][0], abs=1e-5)
    assert read.random_routing is not None
    assert whole.random_routing is not None
    assert read.random_routing.rise == pytest.approx(whole.random_routing.rise, abs=1e-5)


def test_sample_reads_standard_input(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("import os\n"))
    command = ["sample", str(checkpoint), "--prompt", "-", "--tokens", "3", "--temperature", "0", "--memory", "1MB"]
    assert run(command) == 0
    said = capsys.readouterr()
    assert said.out.startswith("import os")
    assert "a second" in said.err


def test_sample_has_a_temperature_and_json(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*options: str) -> str:
        assert run(["sample", str(checkpoint), "--tokens", "8", *options]) == 0
        return capsys.readouterr().out

    assert said("--temperature", "0", "--seed", "1") == said("--temperature", "0", "--seed", "2")
    assert said("--temperature", "5", "--seed", "1") != said("--temperature", "5", "--seed", "2")
    found = json.loads(said("--json", "--seed", "3"))
    assert (found["prompt"], found["seed"], found["temperature"]) == ("def ", 3, 0.8)


def test_a_broken_model_cannot_write(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sample", str(broken)]) == 2
    assert "not finite" in capsys.readouterr().err

"""Checkpoints as other people write them: the model that is trained is the one that `transformers` opens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedConfig

from moe.export import export_checkpoint, import_checkpoint, inspect_checkpoint
from moe.families import FAMILIES
from moe.full import full_model
from moe.layout import layout
from moe.skeleton import model_class
from protocol.errors import ConfigError
from protocol.ids import TRUNK
from protocol.residency import FROZEN

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
TOKENS = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(3))


def saved(config: PreTrainedConfig, folder: Path, dtype: torch.dtype = torch.float32, **how: Any) -> Path:
    """A model of that shape with random weights, as `transformers` itself saves it."""
    torch.manual_seed(11)
    model: Any = model_class(config.model_type)(config)
    model.to(dtype).save_pretrained(folder, **how)
    return folder


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def configured(folder: Path, **values: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def theirs(folder: Path) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def ours(folder: Path) -> torch.Tensor:
    config, blocks = import_checkpoint(folder)
    with torch.no_grad():
        return full_model(layout(config, FROZEN), blocks)(input_ids=TOKENS).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_are_those_of_transformers_whatever_the_file_keeps(
    config: PreTrainedConfig, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = saved(config, tmp_path / "given", dtype)
    assert torch.equal(ours(folder), theirs(folder))
    assert inspect_checkpoint(folder).remarks == ()


def test_a_checkpoint_in_several_files_is_one(config: PreTrainedConfig, tmp_path: Path) -> None:
    folder = saved(config, tmp_path / "given", max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").is_file()
    assert torch.equal(ours(folder), theirs(folder))


class TestTheTwoEndsOfAModel:
    def tied(self, small_config: Callable[[str], PreTrainedConfig], folder: Path, head_plus: float) -> Path:
        def add_head(tensors: dict[str, torch.Tensor]) -> None:
            tensors[HEAD] = tensors[EMBEDDING].clone() + head_plus * torch.randn_like(tensors[EMBEDDING])

        return rewritten(saved(small_config("qwen3_moe"), folder), add_head)

    def test_a_head_of_its_own_is_kept_though_the_configuration_calls_it_tied(self, small_config, tmp_path):
        folder = self.tied(small_config, tmp_path / "given", 1.0)
        logits = ours(folder)
        assert torch.equal(logits, theirs(folder))
        found = inspect_checkpoint(folder)
        assert found.config.tie_word_embeddings is False
        assert ["lm_head.weight has values of its own" in remark for remark in found.remarks] == [True]
        config, blocks = import_checkpoint(folder)
        export_checkpoint(blocks, layout(config, FROZEN), tmp_path / "out")
        assert torch.equal(theirs(tmp_path / "out"), logits)
        assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False

    def test_a_head_that_repeats_the_embedding_stays_tied(self, small_config, tmp_path):
        folder = self.tied(small_config, tmp_path / "given", 0.0)
        assert torch.equal(ours(folder), theirs(folder))
        assert inspect_checkpoint(folder).config.tie_word_embeddings is True
        assert inspect_checkpoint(folder).remarks == ()

    def test_the_head_alone_is_the_embedding_as_well(self, small_config, tmp_path):
        folder = rewritten(
            saved(small_config("qwen3_moe"), tmp_path / "given"),
            lambda tensors: tensors.update({HEAD: tensors.pop(EMBEDDING)}),
        )
        assert torch.equal(ours(folder), theirs(folder))

    def test_an_untied_model_without_a_head_is_refused(self, small_config, tmp_path):
        folder = rewritten(saved(small_config("olmoe"), tmp_path / "given"), lambda tensors: tensors.pop(HEAD))
        with pytest.raises(ConfigError, match=r"missing lm_head\.weight \(.*tie_word_embeddings"):
            import_checkpoint(folder)


def test_what_does_not_fit_is_named(small_config, tmp_path):
    name = "model.norm.weight"
    folder = saved(small_config("olmoe"), tmp_path / "given")
    rewritten(folder, lambda tensors: tensors.update({"model.extra.weight": torch.ones(2)}))
    with pytest.raises(ConfigError, match=r"not part of the model model\.extra\.weight"):
        import_checkpoint(folder)
    rewritten(folder, lambda tensors: (tensors.pop("model.extra.weight"), tensors.update({name: torch.ones(8)})))
    with pytest.raises(ConfigError, match=r"of another shape model\.norm\.weight \[8\] instead of \[32\]"):
        import_checkpoint(folder)
    rewritten(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(ConfigError, match=r"missing model\.norm\.weight"):
        import_checkpoint(folder)
    rewritten(folder, lambda tensors: [tensors.pop(key) for key in list(tensors) if ".experts.3." in key])
    with pytest.raises(ConfigError, match=r"missing|converted"):
        import_checkpoint(folder)


class TestFiles:
    def index(self, config: PreTrainedConfig, folder: Path) -> tuple[Path, dict[str, Any]]:
        saved(config, folder, max_shard_size="20KB")
        path = folder / "model.safetensors.index.json"
        return path, json.loads(path.read_text())

    @pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ""])
    def test_an_index_leads_nowhere_else(self, small_config, tmp_path, name):
        path, index = self.index(small_config("olmoe"), tmp_path / "given")
        index["weight_map"][HEAD] = name
        path.write_text(json.dumps(index))
        saved(small_config("olmoe"), tmp_path)
        with pytest.raises(ConfigError, match="outside of the folder"):
            import_checkpoint(tmp_path / "given")

    def test_a_file_that_is_still_missing_is_named(self, small_config, tmp_path):
        path, index = self.index(small_config("olmoe"), tmp_path / "given")
        (path.parent / index["weight_map"][HEAD]).unlink()
        with pytest.raises(ConfigError, match="not in the folder: fetch the missing file"):
            import_checkpoint(path.parent)

    @pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
    def test_what_is_no_index_is_refused(self, small_config, tmp_path, text):
        path, _ = self.index(small_config("olmoe"), tmp_path / "given")
        path.write_text(text)
        with pytest.raises(ConfigError, match="not an index"):
            import_checkpoint(path.parent)

    def test_pickled_weights_are_not_read(self, small_config, tmp_path):
        folder = saved(small_config("olmoe"), tmp_path / "given")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(ConfigError, match=r"pytorch_model\.bin, a format that is not read.*save_pretrained"):
            import_checkpoint(folder)

    def test_quantised_weights_are_refused(self, small_config, tmp_path):
        folder = saved(small_config("olmoe"), tmp_path / "given")
        name = "model.layers.0.self_attn.q_proj.weight"
        rewritten(folder, lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e4m3fn)}))
        with pytest.raises(ConfigError, match="quantised"):
            import_checkpoint(folder)
        folder = configured(saved(small_config("olmoe"), tmp_path / "other"), quantization_config={"bits": 4})
        with pytest.raises(ConfigError, match="quantised"):
            import_checkpoint(folder)


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float32, "fp32"), (torch.bfloat16, "bf16"), (torch.float16, "fp16")]
)
def test_the_type_of_a_checkpoint_is_known(small_config, tmp_path, dtype, name):
    folder = saved(small_config("mixtral"), tmp_path / "given", dtype)
    assert inspect_checkpoint(folder).dtype == name
    values = json.loads((folder / "config.json").read_text())
    del values["dtype"]
    (folder / "config.json").write_text(json.dumps(values))
    assert inspect_checkpoint(folder).dtype == name, "where the configuration does not say, the files do"


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_an_export_is_kept_in_the_type_that_was_asked_for(config, tmp_path, dtype):
    kept = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    folder = saved(config, tmp_path / "given", kept)
    found, blocks = import_checkpoint(folder)
    out = tmp_path / "out"
    export_checkpoint(blocks, layout(found, FROZEN), out, dtype=dtype)
    loaded: Any = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"] | report["unexpected_keys"]
    assert {tensor.dtype for tensor in model.parameters()} == {kept}
    assert json.loads((out / "config.json").read_text())["dtype"] == str(kept).removeprefix("torch.")
    given, written = load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")
    assert given.keys() == written.keys()
    assert all(torch.equal(given[name], written[name]) for name in given), "what came in goes out, to the bit"


def test_fp16_that_would_overflow_is_refused(small_config, tmp_path):
    config = small_config("olmoe")
    found, blocks = import_checkpoint(saved(config, tmp_path / "given"))
    blocks[TRUNK]["model.norm.weight"][0] = 70_000.0
    with pytest.raises(ConfigError, match=r"model\.norm\.weight .*choose bf16 or fp32"):
        export_checkpoint(blocks, layout(found, FROZEN), tmp_path / "out", dtype="fp16")
    with pytest.raises(ConfigError, match="expected one of fp32, bf16, fp16"):
        export_checkpoint(blocks, layout(found, FROZEN), tmp_path / "out", dtype="int8")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not JSON", "not a JSON object"),
        ("[]", "not a JSON object"),
        ("{}", "names no model_type"),
        ('{"model_type": 3}', "names no model_type"),
        (
            '{"model_type": "llama"}',
            f"architecture 'llama' is not supported: it is none of the {len(FAMILIES)}",
        ),
        ('{"model_type": "my_moe", "auto_map": {"AutoConfig": "mine.Config"}}', "architecture 'my_moe'"),
    ],
)
def test_another_configuration_is_refused_in_our_words(small_config, tmp_path, text, says):
    folder = saved(small_config("olmoe"), tmp_path / "given")
    (folder / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=says):
        import_checkpoint(folder)

"""Checkpoints read and written a span at a time: the same bits as by `transformers`, in no more memory than a span."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig

import moe.stored
import moe.writing
from moe.blocks import Blocks, slice_blocks
from moe.config import config_from_json, config_to_json
from moe.export import (
    checkpoint_blocks,
    checkpoint_config,
    export_checkpoint,
    import_checkpoint,
    inspect_checkpoint,
    open_checkpoint,
)
from moe.families import FAMILIES
from moe.families.micro import micro_values
from moe.layout import Layout, layout
from moe.presets import preset
from moe.skeleton import model_class
from protocol.errors import ConfigError
from protocol.ids import TRUNK
from protocol.residency import ABSENT, FROZEN
from protocol.tensors import fp32_parts
from tests.moe.test_checkpoints import configured, rewritten, saved


def random_model(config: PreTrainedConfig) -> Any:
    """Every parameter and persistent buffer of it drawn: none is what it would be without a checkpoint."""
    torch.manual_seed(1)
    model: Any = model_class(config.model_type)(config)
    kept = model.state_dict()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in kept and tensor.is_floating_point():
            tensor.data.normal_(0.0, 0.1)
    return model


def theirs(folder: Path, cut: Layout) -> Blocks:
    """What `from_pretrained` makes of it."""
    state = open_checkpoint(folder, checkpoint_config(folder)).state_dict()
    return slice_blocks({name: tensor.float() for name, tensor in state.items()}, cut)


def assert_same(given: Blocks, found: Blocks) -> None:
    assert given.keys() == found.keys()
    for block, tensors in given.items():
        assert all(torch.equal(tensor, found[block][name]) for name, tensor in tensors.items()), block


def files(folder: Path) -> dict[str, Tensor]:
    return {name: one for path in folder.glob("*.safetensors") for name, one in load_file(path).items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_read_and_written_as_transformers_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moe.stored, "SPAN", 1000)
    monkeypatch.setattr(moe.writing, "SPAN", 700)
    config = config_from_json(micro_values(FAMILIES[name]))
    random_model(config).save_pretrained(tmp_path / "given", max_shard_size="40KB")
    found = inspect_checkpoint(tmp_path / "given")
    assert found.made, "read by its parts, not as a whole model"
    cuts = [layout(config, FROZEN)]
    if not FAMILIES[name].why_not_absent(cuts[0].config_json):
        cuts.append(layout(config, ABSENT))
    for cut in cuts:
        blocks = import_checkpoint(tmp_path / "given", cut.residency)[1]
        assert_same(theirs(tmp_path / "given", cut), blocks)
        out = tmp_path / cut.residency
        export_checkpoint(blocks, cut, out)
        given, written = files(tmp_path / "given"), files(out)
        assert given.keys() == written.keys()
        assert all(torch.equal(given[one], written[one]) and given[one].dtype == written[one].dtype for one in given)


def test_a_checkpoint_in_the_models_own_names_is_the_same(config: PreTrainedConfig, tmp_path: Path) -> None:
    model = random_model(config)
    model.save_pretrained(tmp_path / "hub")
    model.save_pretrained(tmp_path / "own", save_original_format=False)
    assert files(tmp_path / "hub").keys() != files(tmp_path / "own").keys()
    assert_same(import_checkpoint(tmp_path / "hub")[1], import_checkpoint(tmp_path / "own")[1])


def test_an_export_in_several_files_has_an_index_that_transformers_reads(
    config: PreTrainedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moe.writing, "MAX_FILE_BYTES", 20_000)
    blocks = slice_blocks(random_model(config).state_dict(), cut := layout(config, FROZEN))
    told: list[tuple[int, int]] = []
    export_checkpoint(blocks, cut, tmp_path / "out", dtype="bf16", told=lambda done, of: told.append((done, of)))
    assert told[-1] == (cut.parameters, cut.parameters)
    paths = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(paths) > 3
    for path in paths:
        assert path.stat().st_size < 60_000 or len(load_file(path)) == 1
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: path.name for path in paths for name in load_file(path)}
    assert index["metadata"] == {"total_parameters": cut.parameters, "total_size": 2 * cut.parameters}
    auto: Any = AutoModelForCausalLM
    opened, report = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] | report["unexpected_keys"]
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in random_model(config).state_dict().items()}
    assert all(torch.equal(tensor, rounded[name]) for name, tensor in opened.state_dict().items())


def test_the_configuration_is_the_one_that_transformers_would_write(config: PreTrainedConfig, tmp_path: Path) -> None:
    own = config_from_json(config_to_json(config))
    model = random_model(own)
    model.save_pretrained(tmp_path / "theirs")
    export_checkpoint(slice_blocks(model.state_dict(), cut := layout(own, FROZEN)), cut, tmp_path / "ours")
    said = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "ours")]
    assert said[0] == said[1]


class TestExpertsThatAreNotAsTheyShouldBe:
    def given(self, tmp_path: Path, small_config: Callable[[str], PreTrainedConfig]) -> Path:
        return saved(small_config("olmoe"), tmp_path / "given")

    def test_a_missing_one_is_told(self, small_config, tmp_path):
        folder = self.given(tmp_path, small_config)
        rewritten(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".experts.3.down" in name])
        with pytest.raises(ConfigError, match=r"model\.layers\.0\.mlp\.experts\.down_proj .* 5 of 6 experts are there"):
            import_checkpoint(folder)

    def test_one_of_another_shape_is_told(self, small_config, tmp_path):
        folder, name = self.given(tmp_path, small_config), "model.layers.1.mlp.experts.2.up_proj.weight"
        rewritten(folder, lambda tensors: tensors.update({name: tensors[name][:5].clone()}))
        with pytest.raises(ConfigError, match=r"of another shape .*layers\.1\.mlp\.experts\.gate_up_proj"):
            import_checkpoint(folder)

    def test_gate_without_up_is_told(self, small_config, tmp_path):
        folder = self.given(tmp_path, small_config)
        rewritten(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "up_proj" in name])
        with pytest.raises(
            ConfigError, match=r"of another shape .*gate_up_proj \[6, 24, 32\] instead of \[6, 48, 32\]"
        ):
            import_checkpoint(folder)


def in_fp8(folder: Path, scale: torch.dtype) -> Path:
    """Its two-dimensional weights in blocks of 8 by 8, as the hub's fp8 checkpoints have them."""

    def quantise(tensors: dict[str, Tensor]) -> None:
        for name, whole in list(tensors.items()):
            if whole.ndim != 2 or "embed" in name or "lm_head" in name or ".gate." in name:
                continue
            rows, columns = whole.shape
            tiles = whole.float().reshape(rows // 8, 8, columns // 8, 8)
            scales = (tiles.abs().amax((1, 3)) / 448).to(scale)
            tensors[name] = (tiles / scales.float()[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scales

    method = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [8, 8]}
    return configured(rewritten(folder, quantise), quantization_config=method)


@pytest.mark.parametrize("scale", [torch.float32, torch.bfloat16])
def test_fp8_is_dequantised_as_transformers_does(
    config: PreTrainedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: torch.dtype
) -> None:
    """It asks for `accelerate`, which it then does not need on a CPU."""
    monkeypatch.setattr("transformers.quantizers.quantizer_finegrained_fp8.is_accelerate_available", lambda: True)
    folder = in_fp8(saved(config, tmp_path / "given", torch.bfloat16), scale)
    found, blocks = import_checkpoint(folder)
    assert any("dequantised" in remark for remark in inspect_checkpoint(folder).remarks)
    auto: Any = AutoModelForCausalLM
    state = auto.from_pretrained(folder, dtype=torch.float32).state_dict()
    cut = layout(found, FROZEN)
    assert_same(slice_blocks({name: tensor.float() for name, tensor in state.items()}, cut), blocks)
    opened = open_checkpoint(folder, found).state_dict()
    assert all(torch.equal(tensor.float(), opened[name]) for name, tensor in state.items()), "as a whole, too"
    export_checkpoint(blocks, cut, tmp_path / "out", dtype="bf16")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_fp8_that_lacks_experts_or_fits_no_blocks_is_refused(small_config, tmp_path):
    folder, name = in_fp8(saved(small_config("mixtral"), tmp_path / "given"), torch.float32), "experts.2.w2.weight"
    lacking = [f"model.layers.0.block_sparse_moe.{name}", f"model.layers.0.block_sparse_moe.{name}_scale_inv"]
    given = load_file(folder / "model.safetensors")
    rewritten(folder, lambda tensors: [tensors.pop(one) for one in lacking])
    with pytest.raises(ConfigError, match=r"layers\.0\.mlp\.experts\.down_proj .* 4 of 5 experts are there"):
        import_checkpoint(folder)
    save_file(given | {lacking[1]: torch.ones(3, 2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"down_proj cannot be made of what the checkpoint holds"):
        import_checkpoint(folder)


def test_mxfp4_is_dequantised_as_transformers_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.quantizers.quantizer_mxfp4.is_accelerate_available", lambda: True)
    name = next(name for name, family in FAMILIES.items() if family.transposed and len(family.experts) == 4)
    config = config_from_json(micro_values(FAMILIES[name], hidden_size=64, intermediate_size=32))
    random_model(config).to(torch.bfloat16).save_pretrained(tmp_path / "given")
    generator = torch.Generator().manual_seed(5)

    def quantise(tensors: dict[str, Tensor]) -> None:
        for one in [one for one in tensors if one.endswith(("gate_up_proj", "down_proj"))]:
            experts, into, out = tensors.pop(one).shape
            shape = (experts, out, into // 32, 16)
            tensors[f"{one}_blocks"] = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
            tensors[f"{one}_scales"] = torch.randint(120, 130, shape[:3], generator=generator, dtype=torch.uint8)

    folder = configured(rewritten(tmp_path / "given", quantise), quantization_config={"quant_method": "mxfp4"})
    found, blocks = import_checkpoint(folder)
    auto: Any = AutoModelForCausalLM
    state = auto.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert_same(slice_blocks({n: t.float() for n, t in state.items()}, layout(found, FROZEN)), blocks)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quantised by GPTQ: fp8, mxfp8, mxfp4 are dequantised"),
        ({"quant_method": "awq"}, "quantised by AWQ"),
        ({"quant_method": "bitsandbytes"}, "quantised by bitsandbytes"),
        ({"quant_method": "something\nnew"}, "quantised by something new: "),
        ({"bits": 4}, "quantised by an unnamed method"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": 3, "nonsense": 1}, None),
    ],
)
def test_what_is_not_dequantised_is_refused_by_name(small_config, tmp_path, method, says):
    folder = configured(saved(small_config("olmoe"), tmp_path / "given"), quantization_config=method)
    if says is None:  # a known method whose weights are not quantised after all
        assert inspect_checkpoint(folder).dtype == "fp32"
        return
    with pytest.raises(ConfigError, match=says):
        import_checkpoint(folder)


def test_names_of_quantised_weights_are_enough(small_config, tmp_path):
    folder = saved(small_config("olmoe"), tmp_path / "given")
    name = "model.layers.0.self_attn.q_proj.qweight"
    rewritten(folder, lambda tensors: tensors.update({name: torch.ones(4, 4, dtype=torch.int32)}))
    with pytest.raises(ConfigError, match=r"quantised \(model\.layers\.0\.self_attn\.q_proj\.qweight\)"):
        import_checkpoint(folder)


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def sparse(folder: Path, config: PreTrainedConfig) -> Path:
    """A checkpoint of zeros that takes no disk."""
    entries, begin = {}, 0
    for one in moe.writing.written_tensors(inspect_model(config), layout(config, FROZEN), torch.bfloat16):
        end = begin + one.payload_bytes
        entries[one.name] = {"dtype": "BF16", "shape": list(one.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries).encode()
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + begin)
    config.save_pretrained(folder)
    return folder


def inspect_model(config: PreTrainedConfig) -> Any:
    with torch.device("meta"):
        return model_class(config.model_type)(config)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells")
def test_neither_way_takes_the_memory_of_a_tensor(tmp_path: Path) -> None:
    """Embedding and head are 134 MB each as fp32, all of it is 335 MB."""
    values = config_to_json(preset("tiny", vocab_size=65_536)) | {
        "hidden_size": 512,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    config = config_from_json(values)
    cut = layout(config, FROZEN)
    assert max(spec.payload_bytes for spec in cut.trunk) == 65_536 * 512 * 4
    folder = sparse(tmp_path / "given", config)
    found = inspect_checkpoint(folder)
    peak, idle = 0, anonymous_bytes()

    def look(*_: int) -> None:
        nonlocal peak
        peak = max(peak, anonymous_bytes())

    written_bytes = 0
    for _, tensors in checkpoint_blocks(found, cut, look):
        written_bytes += sum(len(part) for part in fp32_parts(tensors))
    assert written_bytes > cut.total_bytes
    # a span takes 25 MB and two may be held at once; what the allocator keeps besides differs between machines by 30 MB
    assert peak - idle < 110e6, "a span or two, not a tensor"
    mapped: Blocks = {
        block: {spec.name: in_file(tmp_path / "zeros", spec.shape) for spec in cut.block_specs(block)}
        for block in cut.blocks
    }
    peak, idle = 0, anonymous_bytes()
    export_checkpoint(mapped, cut, tmp_path / "out", dtype="bf16", told=look)
    assert peak - idle < 64e6


def in_file(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Zeros of a file: the page cache's memory."""
    if not path.exists():
        path.touch()
        with path.open("r+b") as file:
            file.truncate(65_536 * 512 * 4)
    return torch.from_file(str(path), shared=True, size=math.prod(shape)).view(shape)


def test_what_shrinks_while_it_is_read_is_a_sentence_and_ctrl_c_leaves_nothing(small_config, tmp_path):
    folder = saved(small_config("olmoe"), tmp_path / "given")
    found = inspect_checkpoint(folder)
    blocks = import_checkpoint(folder)[1]
    cut = layout(found.config, FROZEN)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(20_000)
    with pytest.raises(ConfigError, match="became shorter while it was read"):
        [b"".join(fp32_parts(tensors)) for _, tensors in checkpoint_blocks(found, cut)]

    def stop(done: int, _: int) -> None:
        if done > 10_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(blocks, cut, tmp_path / "out", told=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["given"]
    export_checkpoint(blocks, cut, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    blocks[TRUNK]["model.norm.weight"][0] = 1e6
    for wrong in (lambda: export_checkpoint(blocks, cut, tmp_path / "out", replace=True, told=stop),
                  lambda: export_checkpoint(blocks, cut, tmp_path / "out", replace=True, dtype="fp16")):  # fmt: skip
        with pytest.raises((KeyboardInterrupt, ConfigError)):
            wrong()
        assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_a_mapping_that_is_not_known_is_left_to_transformers(small_config, tmp_path, monkeypatch):
    folder = saved(small_config("mixtral"), tmp_path / "given")
    expected = import_checkpoint(folder)[1]
    monkeypatch.setattr("moe.mapping._kind", lambda _: "other")
    found = inspect_checkpoint(folder)
    assert not found.made
    assert any("the whole model is loaded for it, which takes about" in remark for remark in found.remarks)
    assert_same(expected, import_checkpoint(folder)[1])


def test_a_number_kept_as_another_type_is_refused(small_config, tmp_path):
    folder, name = saved(small_config("olmoe"), tmp_path / "given"), "model.norm.weight"
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {name: tensors[name].to(torch.int8)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"quantised \(model\.norm\.weight is kept as I8\)"):
        import_checkpoint(folder)

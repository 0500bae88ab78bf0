from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moe.export import export_checkpoint, import_checkpoint
from moe.full import full_model, initial_blocks
from moe.layout import layout
from moe.presets import preset
from protocol.errors import ConfigError
from protocol.ids import TRUNK
from protocol.residency import ABSENT, FROZEN

# Runs where nothing of this project can be imported, however it was installed.
STRANGER = """
import importlib.abc, json, sys
OURS = {"barnraise", "protocol", "moe", "aggregation", "coordinator", "worker", "simulator"}
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in OURS:
            raise ImportError("not here: " + name)
sys.meta_path.insert(0, Refuse())
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
folders, out = sys.argv[1:-1], sys.argv[-1]
tokens, logits, facts = load_file(folders[0] + "/../tokens.safetensors")["tokens"], {}, {}
for folder in folders:
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    everything = bytes(range(256)).decode("latin-1") + "\\n  spaces , kept . \\U0001f33e"
    ids = tokenizer(everything)["input_ids"]
    written = model.generate(**tokenizer("def f(", return_tensors="pt", return_token_type_ids=False),
                             max_new_tokens=5, min_new_tokens=5, do_sample=False)
    name = folder.rsplit("/", 1)[1]
    logits[name] = model(input_ids=tokens).logits.detach().contiguous()
    facts[name] = {
        "bytes": ids == list(everything.encode()),
        "round_trip": tokenizer.decode(ids) == everything,
        "ids": [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id],
        "config_ids": [model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id],
        "generation_eos": model.generation_config.eos_token_id,
        "new_tokens": int(written.shape[1]) - 6,
        "tokenizer": len(tokenizer),
        "missing": sorted(report["missing_keys"]) + sorted(report["unexpected_keys"]),
    }
save_file(logits, out + "/logits.safetensors")
assert not OURS & set(sys.modules), OURS & set(sys.modules)
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """One folder for each architecture, opened by a process that does not know this project."""
    from_here = Path(__file__).with_name("conftest.py")
    namespace: dict[str, Any] = {}
    exec(compile(from_here.read_text(), str(from_here), "exec"), namespace)
    root = tmp_path_factory.mktemp("exported")
    tokens = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(1))
    from safetensors.torch import save_file

    save_file({"tokens": tokens}, root / "tokens.safetensors")
    logits = {}
    for name, build in namespace["BUILDERS"].items():
        config = build()
        cut = layout(config, ABSENT)
        blocks = initial_blocks(config, cut, 9)
        export_checkpoint(blocks, cut, root / name)
        with torch.no_grad():
            logits[name] = full_model(cut, blocks)(input_ids=tokens).logits
    done = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, *(str(root / name) for name in logits), str(root)],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return root, logits, json.loads(done.stdout.splitlines()[-1])


def test_a_process_without_this_project_opens_encodes_and_generates(exported, architecture):
    _, _, facts = exported
    assert facts[architecture] == {
        "bytes": True,
        "round_trip": True,
        "ids": [256, 257, 258],
        "config_ids": [256, 257, 258],
        "generation_eos": 258,
        "new_tokens": 5,
        "tokenizer": 264,
        "missing": [],
    }


def test_its_logits_are_those_of_the_merged_model(exported, architecture):
    root, logits, _ = exported
    assert torch.equal(load_file(root / "logits.safetensors")[architecture], logits[architecture])


def test_importing_the_export_gives_the_same_bits(exported, architecture, small_config, residency):
    root, _, _ = exported
    config, blocks = import_checkpoint(root / architecture, residency)
    cut = layout(small_config(architecture), residency)
    assert layout(config, residency) == cut
    started = initial_blocks(config, layout(config, ABSENT), 9)
    again = full_model(layout(config, ABSENT), started).state_dict()
    merged = full_model(cut, blocks).state_dict()
    assert all(torch.equal(merged[name], again[name]) for name in again)


def test_the_names_on_disk_are_those_of_the_published_checkpoints(exported):
    root, _, _ = exported
    assert "model.layers.0.mlp.experts.0.gate_proj.weight" in load_file(root / "olmoe" / "model.safetensors")
    assert "model.layers.0.block_sparse_moe.experts.0.w1.weight" in load_file(root / "mixtral" / "model.safetensors")


def test_an_export_replaces_the_former_one_and_leaves_nothing_beside_it(tmp_path):
    config = preset("tiny")
    cut = layout(config, FROZEN)
    for seed in (1, 2):
        export_checkpoint(initial_blocks(config, cut, seed), cut, tmp_path / "checkpoint", replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    _, blocks = import_checkpoint(tmp_path / "checkpoint")
    assert torch.equal(blocks[TRUNK]["lm_head.weight"], initial_blocks(config, cut, 2)[TRUNK]["lm_head.weight"])


def test_a_failed_export_keeps_the_former_one(tmp_path, monkeypatch):
    config = preset("tiny")
    cut = layout(config, FROZEN)
    blocks = initial_blocks(config, cut, 1)
    folder = tmp_path / "checkpoint"
    export_checkpoint(blocks, cut, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("moe.export.export_companions", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_checkpoint(initial_blocks(config, cut, 2), cut, folder, replace=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_tokenizer_too_large_for_the_model_is_refused(tmp_path):
    config = preset("tiny", vocab_size=100)
    cut = layout(config, FROZEN)
    with pytest.raises(ConfigError, match="id 263"):
        export_checkpoint(initial_blocks(config, cut, 1), cut, tmp_path / "checkpoint")
    assert not list(tmp_path.iterdir())


def test_folders_that_are_no_checkpoint_are_refused(tmp_path, exported):
    root, _, _ = exported
    with pytest.raises(ConfigError, match=r"no config\.json"):
        import_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="safetensors"):
        import_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(ConfigError, match="cannot be read"):
        import_checkpoint(tmp_path)
    (tmp_path / "config.json").write_bytes((root / "olmoe" / "config.json").read_bytes())
    with pytest.raises(ConfigError, match="cannot be read"):
        import_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((root / "mixtral" / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="do not fit"):
        import_checkpoint(tmp_path)

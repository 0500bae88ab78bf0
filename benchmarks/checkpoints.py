"""What reading and writing a checkpoint take: anonymous memory, seconds and bytes read, at two sizes.

    python -m benchmarks.checkpoints [--quick | --only SIZE] [--folder FOLDER] [--json FILE]

A seeded random bf16 checkpoint in the hub's names and several files is written (28 GB of disk are needed for the larger
size; what is no longer needed goes as soon as may be). Each step is a process of its own, as `barnraise` does it:
`plan` reads headers; `import` reads it into the blocks of a first version, hashed on the way, and `encode` encodes its
columns for workers that do not hold them (both are `coordinator init`); `export` writes that version in bf16, whose
values must be those that were given. `from_pretrained` is the peer: `transformers` loads the small one in fp32, which
is what a run's blocks are. Another process reads `RssAnon` every few milliseconds: memory that only this process has,
without the page cache. `idle_mb` is what Python, torch and transformers take before; `read_mb` is what the process
asked the system to read (mapped files are not seen there). Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.coordinator_memory import anonymous_mb
from benchmarks.report import Row, machine, print_rows, write_json

if TYPE_CHECKING:
    from moe.layout import Layout

INTERVAL_S = 0.01
HIDDEN, EXPERT, EXPERTS, VOCABULARY = 2048, 768, 32, 65_536
LAYERS = {"0.3 GB": 0, "2 GB": 5, "8 GB": 22}
"""Of a size; 0 is a model of a quarter of the widths."""
FILE_BYTES = 2_000_000_000


def main() -> None:
    """Print the rows, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half a minute: one small size")
    parser.add_argument("--only", choices=LAYERS, help="one size")
    parser.add_argument("--folder", type=Path, default=None, help="where there is room on a disk")
    parser.add_argument("--json", type=Path, metavar="FILE", default=None, help="write the rows to FILE, too")
    parser.add_argument("--child", nargs=3, metavar=("STEP", "SIZE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        step, size, folder = options.child
        _STEPS[step](size, Path(folder))
        return
    print(machine())
    sizes = [options.only] if options.only else ["0.3 GB"] if options.quick else ["2 GB", "8 GB"]
    rows = [row for size in sizes for row in measured(size, options.folder)]
    print_rows(rows)
    if options.json is not None:
        write_json(options.json, rows)


def measured(size: str, folder: Path | None) -> list[Row]:
    """All rows of one size."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        _run("make", size, place)
        steps = ["plan", *([] if size == "8 GB" else ["from_pretrained"]), "import"]
        rows = [row for step in steps for row in _run(step, size, place)]
        shutil.rmtree(Path(place) / "given")  # room for the export
        rows += _run("export", size, place)
        _run("check", size, place)
    return rows


def _run(step: str, size: str, place: str) -> list[Row]:
    """One process; a row for each of its phases."""
    command = [sys.executable, "-m", "benchmarks.checkpoints", "--child", step, size, place]
    said: list[dict[str, Any]] = [{"phase": "start"}]
    peaks: dict[str, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        listener = threading.Thread(target=lambda: said.extend(map(json.loads, child.stdout or ())))
        listener.start()
        while child.poll() is None:
            phase = said[-1]["phase"]
            peaks[phase] = max(peaks.get(phase, 0.0), anonymous_mb(child.pid))
            time.sleep(INTERVAL_S)
        listener.join()
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    idle_mb = peaks.get("idle", 0.0)
    return [
        {
            "what": before["phase"],
            "size": size,
            "checkpoint_mb": round(after["given_bytes"] / 1e6),
            "seconds": round(after["at_s"] - before["at_s"], 2),
            "read_mb": round((after["read_bytes"] - before["read_bytes"]) / 1e6, 2),
            "idle_mb": round(idle_mb),
            "peak_mb": round(peaks.get(before["phase"], 0.0)),
            "over_idle_mb": round(peaks.get(before["phase"], 0.0) - idle_mb, 1),
        }
        for before, after in itertools.pairwise(said)
        if before["phase"] not in ("start", "idle")
    ]


def _say(phase: str, given: Path) -> None:
    """Tell the measuring process what begins, and where this one is."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    facts = given.parent / "facts.json"
    print(
        json.dumps(
            {
                "phase": phase,
                "at_s": time.perf_counter(),
                "read_bytes": int(next(line for line in lines if line.startswith("rchar")).split()[1]),
                "given_bytes": json.loads(facts.read_text())["bytes"] if facts.is_file() else 0,
            }
        ),
        flush=True,
    )


def _idle(given: Path) -> None:
    """Everything that a step needs is loaded, and what that took has been seen."""
    import torch

    import coordinator.store.artifacts
    import coordinator.store.versions
    import coordinator.work.publishing
    import moe.export

    del coordinator, moe
    torch.set_num_threads(1)
    _say("idle", given)
    time.sleep(10 * INTERVAL_S)


def _layout(size: str) -> Layout:
    from moe.config import config_from_json, config_to_json
    from moe.layout import layout
    from moe.presets import preset

    narrower = 1 if LAYERS[size] else 4
    values = config_to_json(preset("100m")) | {
        "hidden_size": HIDDEN // narrower,
        "intermediate_size": EXPERT // narrower,
        "num_hidden_layers": LAYERS[size] or 8,
        "num_experts": EXPERTS,
        "vocab_size": VOCABULARY,
    }
    return layout(config_from_json(values), "frozen")


def _make(size: str, place: Path) -> None:
    """The checkpoint, and the digest of its values in their order; every value is finite."""
    import torch

    from moe.config import config_from_json
    from moe.skeleton import meta_model
    from moe.stored import SPAN
    from moe.writing import header_of, written_tensors

    torch.set_num_threads(1)
    cut, given = _layout(size), place / "given"
    given.mkdir()
    model = meta_model(config_from_json(cut.config_json))
    wanted = written_tensors(model, cut, torch.bfloat16)
    generator = torch.Generator().manual_seed(LAYERS[size])
    hasher, index, total, first = hashlib.sha256(), {}, 0, 0
    while first < len(wanted):
        stop, file_bytes = first + 1, wanted[first].payload_bytes
        while stop < len(wanted) and file_bytes + wanted[stop].payload_bytes <= FILE_BYTES:
            file_bytes, stop = file_bytes + wanted[stop].payload_bytes, stop + 1
        name = f"model-{first:05d}.safetensors"
        with (given / name).open("wb") as file:
            file.write(header_of(wanted[first:stop]))
            for one in wanted[first:stop]:
                index[one.name] = name
                for start in range(0, one.elements, SPAN):
                    bits = torch.empty(min(SPAN, one.elements - start), dtype=torch.int16)
                    bits.random_(-(1 << 15), 1 << 15, generator=generator)
                    values = (bits & ~0x4000).view(torch.uint8).numpy().data  # below 2: neither infinite nor NaN
                    file.write(values)
                    hasher.update(values)
        total, first = total + file_bytes, stop
    (given / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    model.config.dtype = "bfloat16"
    model.config.save_pretrained(given)
    (place / "facts.json").write_text(json.dumps({"bytes": total, "digest": hasher.hexdigest()}))


def _plan(_: str, place: Path) -> None:
    from moe.export import inspect_checkpoint

    given = place / "given"
    _idle(given)
    _say("plan", given)
    inspect_checkpoint(given, only_headers=True)
    _say("end", given)


def _from_pretrained(_: str, place: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    given = place / "given"
    _idle(given)
    _say("from_pretrained", given)
    auto: Any = AutoModelForCausalLM
    auto.from_pretrained(given, dtype=torch.float32, local_files_only=True)
    _say("end", given)


def _import(_: str, place: Path) -> None:
    from coordinator.engine.down_config import DownConfig
    from coordinator.store.artifacts import ArtifactStore
    from coordinator.store.versions import Versions
    from coordinator.work.publishing import first_version
    from moe.export import checkpoint_blocks, inspect_checkpoint
    from moe.layout import layout
    from protocol.ids import RunId

    given = place / "given"
    _idle(given)
    _say("import", given)
    found = inspect_checkpoint(given)
    cut = layout(found.config, "frozen")
    blobs = ArtifactStore(place / "artifacts").blocks
    versions = Versions(place / "versions", blobs, cut)

    def blocks() -> Any:
        yield from checkpoint_blocks(found, cut)
        _say("encode", given)

    first_version(versions, cut, blocks(), RunId("benchmark"), DownConfig(), created_at_s=0.0)
    _say("end", given)


def _export(size: str, place: Path) -> None:
    from coordinator.store.artifacts import ArtifactStore
    from coordinator.store.versions import Versions
    from moe.export import export_checkpoint

    given, cut = place / "given", _layout(size)
    _idle(given)
    _say("export", given)
    versions = Versions(place / "versions", ArtifactStore(place / "artifacts").blocks, cut)
    digest = versions.manifest_digest(0)
    assert digest is not None
    export_checkpoint(versions.load_blocks(versions.manifest(digest)), cut, place / "out", dtype="bf16")
    _say("end", given)


def _check(_: str, place: Path) -> None:
    """What was written is what was given, to the bit."""
    from moe.stored import SPAN, stored_tensors

    hasher = hashlib.sha256()
    for path in sorted((place / "out").glob("*.safetensors")):
        begin = stored_tensors(path)[1]
        with path.open("rb") as file:
            file.seek(begin)
            while piece := file.read(SPAN):
                hasher.update(piece)
    if hasher.hexdigest() != json.loads((place / "facts.json").read_text())["digest"]:
        raise SystemExit("the export has other values than the checkpoint")


_STEPS: dict[str, Callable[[str, Path], None]] = {
    "make": _make,
    "plan": _plan,
    "from_pretrained": _from_pretrained,
    "import": _import,
    "export": _export,
    "check": _check,
}


if __name__ == "__main__":
    main()

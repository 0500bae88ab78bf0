"""What a coordinator's slow work takes of a machine's memory: anonymous peak against model size and workers.

    python -m benchmarks.coordinator_memory [--quick | --large] [--only SHAPE] [--codec NAME] [--json FILE]

For each row a fresh process has a version 0 and `workers` submissions on disk (each of the trunk and two columns, steps
towards another model and noise) and carries out, in a thread as the coordinator does, what a round asks of its
executor: it measures four of them, gains included; makes version 1 of all by the trimmed mean with outer momentum,
writes the steps to it in 4 bits as runs do, and compares it with version 0; validates it; and makes version 2 of them
by centered clipping. Another process reads its `RssAnon` every few milliseconds: memory that only it has, without the
page cache, which is given back when others need it. `idle_mb` is what Python, torch and transformers take before
anything is asked; `beyond_mb` is the peak less one fp32 model and less idle. Beyond 16 workers, workers share payload
files (their rows are read and decoded one by one all the same). FILE has each row as soon as it is measured, and rows
that are there already are not measured again: a run that was cut off goes on. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import Row, machine, print_rows, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from coordinator.engine.commands import Contribution
    from coordinator.engine.lease import GrantedLease
    from moe.layout import Layout

INTERVAL_S = 0.002
COLUMNS_HELD = 2
MEASURED = 4
"""Submissions; each has the memory to itself before the next begins."""
PAYLOADS = 16
SEQUENCE_LENGTH = 64
SEQUENCES = 16


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's sizes, as `preset` has them."""

    hidden: int
    expert: int
    layers: int
    experts: int


SHAPES = {
    "40 MB": Shape(256, 512, 4, 6),
    "100m": Shape(512, 512, 8, 16),
    "400M": Shape(1024, 1024, 8, 15),
    "1B": Shape(1024, 1024, 8, 38),
}
QUICK = (("40 MB", 4), ("40 MB", 64))
USUAL = (("40 MB", 4), ("40 MB", 16), ("40 MB", 64), ("100m", 4), ("100m", 64), ("400M", 4), ("400M", 64))
LARGE = (("1B", 16),)


def main() -> None:
    """Print the rows, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute: the smallest model alone")
    parser.add_argument("--large", action="store_true", help="one row of a model of 4 GB (10 GB of disk)")
    parser.add_argument("--codec", default="int4", help="what submissions are written in")
    parser.add_argument("--only", metavar="SHAPE", choices=SHAPES, help="rows of one model")
    parser.add_argument("--json", type=Path, metavar="FILE", default=None, help="write the rows to FILE, too")
    parser.add_argument("--child", nargs=2, metavar=("STEP", "PLAN"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        _STEPS[options.child[0]](json.loads(options.child[1]))
        return
    print(machine())
    sizes = QUICK if options.quick else LARGE if options.large else USUAL
    rows: list[Row] = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    known = {(one["model"], one["workers"], one["codec"]) for one in rows}
    for shape, workers in sizes:
        if options.only in (None, shape) and (shape, workers, options.codec) not in known:
            rows.append(row(shape, workers, options.codec))
            print_rows(rows[-1:])
            if options.json is not None:
                write_json(options.json, rows)
    print_rows(rows)


def row(shape: str, workers: int, codec: str) -> Row:
    """One process's peaks."""
    with tempfile.TemporaryDirectory() as folder:
        plan = json.dumps({"folder": folder, "shape": shape, "workers": workers, "codec": codec})
        command = [sys.executable, "-m", "benchmarks.coordinator_memory", "--child"]
        subprocess.run([*command, "prepare", plan], check=True)
        began_s = time.perf_counter()
        peaks = _peaks([*command, "work", plan])
        seconds = time.perf_counter() - began_s
    model_mb = peaks.pop("model")
    highest = max(peaks.values())
    return {
        "model": shape,
        "model_mb": round(model_mb),
        "workers": workers,
        "codec": codec,
        **{f"{phase}_mb": round(peak) for phase, peak in peaks.items()},
        "peak_mb": round(highest),
        "beyond_mb": round(highest - model_mb - peaks["idle"], 1),
        "seconds": round(seconds, 1),
    }


def _peaks(command: list[str]) -> dict[str, float]:
    """Highest RssAnon of each phase, 10^6 bytes, and what the process says of its model."""
    peaks: dict[str, float] = {}
    said: list[str] = ["start"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        listener = threading.Thread(target=lambda: said.extend(map(str.strip, child.stdout or ())))
        listener.start()
        while child.poll() is None:
            phase = said[-1]
            if not phase.startswith("model "):
                peaks[phase] = max(peaks.get(phase, 0.0), anonymous_mb(child.pid))
            time.sleep(INTERVAL_S)
        listener.join()
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    peaks.pop("start", None)
    return {"model": next(float(line.split()[1]) for line in said if line.startswith("model "))} | peaks


def anonymous_mb(pid: int) -> float:
    """RssAnon of a process, 10^6 bytes; 0 where it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024 / 1e6
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        pass
    return 0.0


def _layout(shape: str) -> tuple[Any, Layout]:
    from moe.config import config_from_json, config_to_json
    from moe.layout import layout
    from moe.presets import preset

    sizes = SHAPES[shape]
    values = config_to_json(preset("100m")) | {
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.expert,
        "num_hidden_layers": sizes.layers,
        "num_experts": sizes.experts,
    }
    config = config_from_json(values)
    return config, layout(config, "frozen")


def _columns(number: int, columns: int) -> tuple[int, ...]:
    first = number % PAYLOADS * COLUMNS_HELD
    return tuple(sorted((first + index) % columns for index in range(COLUMNS_HELD)))


def _prepare(plan: dict[str, Any]) -> None:
    """Version 0, and the payloads; their digests go to a file."""
    import torch

    from coordinator.store.artifacts import ArtifactStore
    from coordinator.store.versions import Versions
    from moe.full import initial_blocks
    from moe.layout import submission_specs
    from protocol.codecs import codec_named
    from protocol.ids import RoundNumber, RunId, Version
    from protocol.manifest import Manifest
    from protocol.tensors import encode_tensors

    torch.set_num_threads(1)
    root, (config, cut) = Path(plan["folder"]), _layout(plan["shape"])
    store = ArtifactStore(root / "artifacts")
    versions = Versions(root / "versions", store.blocks, cut)
    blocks = initial_blocks(config, cut, 1)
    manifest = Manifest(
        run_id=RunId("memory"), version=Version(0), parent_version=None, round=RoundNumber(0), created_at_s=0.0,
        model=dict(cut.config_json), residency="frozen",
        blocks={block: versions.put_block(tensors) for block, tensors in blocks.items()}, momenta={}, val_loss=None,
        tokens_trained=0,
    )  # fmt: skip
    versions.publish(manifest, "init")
    digests = []
    for number in range(min(plan["workers"], PAYLOADS)):
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for spec in submission_specs(cut, _columns(number, cut.columns)):
            block, _, name = spec.name.partition("/")
            noise = torch.empty(spec.shape).normal_(0.0, 1e-3, generator=generator)
            tensors[spec.name] = noise.add_(next(t[name] for b, t in blocks.items() if b == block), alpha=0.01)
        digests.append(store.payloads.put(encode_tensors(tensors, codec_named(plan["codec"]))))
    (root / "digests.json").write_text(json.dumps(digests))


class _Tokens:
    """A dataset of nothing but bytes."""

    def screening_batch(self, seed: int, count: int, length: int, _: int | None = None) -> NDArray[np.int64]:
        """[count, length + 1]."""
        import numpy

        return numpy.random.default_rng(seed % 2**32).integers(0, 256, (count, length + 1))

    def sequences(self, seed: int, start: int, count: int, length: int) -> NDArray[np.int64]:
        """[count, length + 1]."""
        return self.screening_batch(seed + start, count, length)

    def heldout_all(self, length: int, limit: int) -> NDArray[np.int64]:
        """[limit, length + 1]."""
        return self.screening_batch(0, limit, length)


def _work(plan: dict[str, Any]) -> None:
    """Say each phase before it begins; end where the last one does."""
    import torch

    from coordinator.store.artifacts import ArtifactStore
    from coordinator.store.versions import Versions
    from coordinator.work.executor import Executor
    from coordinator.work.gains import WorkSettings
    from protocol.allocator import keep_little

    keep_little()
    torch.set_num_threads(1)
    root, (_, cut) = Path(plan["folder"]), _layout(plan["shape"])
    store, tokens = ArtifactStore(root / "artifacts"), _Tokens()
    settings = WorkSettings(
        sequence_length=SEQUENCE_LENGTH, heldout_limit=SEQUENCES, screening_sequences=SEQUENCES,
        evaluation_batch=SEQUENCES, evaluation_device="cpu", keep_checkpoints=1,
    )  # fmt: skip
    executor = Executor(
        settings=settings, layout=cut, payloads=store.payloads,
        versions=Versions(root / "versions", store.blocks, cut), dataset=tokens,  # type: ignore[arg-type]
        companions={}, dtype="fp32", checkpoints=root / "checkpoints", clock=lambda: 0.0,
    )  # fmt: skip
    print(f"model {cut.total_bytes / 1e6}\nidle", flush=True)
    time.sleep(0.2)
    failed: list[BaseException] = []

    def all_of_it() -> None:
        try:
            for phase, command in _round(plan, cut, executor):
                print(phase, flush=True)
                executor.execute(command)
        except BaseException as error:  # told where the process ends
            failed.append(error)

    thread = threading.Thread(target=all_of_it, name="executor")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _round(plan: dict[str, Any], cut: Layout, executor: Any) -> Iterator[tuple[str, Any]]:
    """Phases and commands, each made when the one before has been carried out."""
    from coordinator.engine import commands as cm
    from coordinator.engine.down_config import DownConfig
    from protocol.ids import RoundNumber, Version

    versions = executor._versions
    digests = json.loads((Path(plan["folder"]) / "digests.json").read_text())
    for number in range(MEASURED):
        held = _lease(number, cut)
        yield "measure", cm.MeasureSubmission(
            command_id=f"measure:{number}", lease=held, digest=digests[number], payload_bytes=0, codec=plan["codec"],
            heldout_seed=7, measure_gain=True,
        )  # fmt: skip
    contributions = tuple(
        _contribution(number, digests[number % len(digests)], plan["codec"], cut) for number in range(plan["workers"])
    )
    before = cm.PublishedVersion(version=Version(0), manifest=versions.manifest_digest(0))
    common: dict[str, Any] = {
        "round": RoundNumber(1), "contributions": contributions, "clips": (), "outer_learning_rate": 0.7,
        "outer_momentum": 0.9, "seed": 1, "oldest_needed": Version(0), "down": DownConfig(),
    }  # fmt: skip
    yield "trimmed_mean", cm.AggregateRound(
        command_id="aggregate:1", parent_version=Version(0), parent_manifest=before.manifest, version=Version(1),
        rule="trimmed_mean", compared_with=(before,), region_seed=3, **common,
    )  # fmt: skip
    made = versions.manifest_digest(1)
    yield "validate", cm.ValidateVersion(command_id="validate:1", version=Version(1), manifest=made)
    yield "clipping", cm.AggregateRound(
        command_id="aggregate:2", parent_version=Version(1), parent_manifest=made, version=Version(2),
        rule="centered_clipping", **common,
    )  # fmt: skip


def _lease(number: int, cut: Layout) -> GrantedLease:
    from coordinator.engine.lease import GrantedLease
    from protocol.ids import LeaseId, RoundNumber, Version, WorkerId
    from protocol.lease import DataRange
    from protocol.recipe import Recipe

    return GrantedLease(
        lease_id=LeaseId(f"r1.{number}"), round=RoundNumber(1), worker=WorkerId(f"{number:032x}"),
        base_version=Version(0), columns=_columns(number, cut.columns), data=DataRange(seed=1, start=0, count=4),
        seed=1, inner_steps=2, batch_sequences=2, recipe=Recipe(), granted_at_s=0.0, deadline_s=1e9,
    )  # fmt: skip


def _contribution(number: int, digest: Any, codec: str, cut: Layout) -> Contribution:
    from coordinator.engine.commands import Contribution
    from protocol.ids import LeaseId, Version

    return Contribution(
        lease_id=LeaseId(f"r1.{number}"), digest=digest, codec=codec, columns=_columns(number, cut.columns),
        base_version=Version(0), step_scale=1.0, weight=1.0, sequences=4,
    )  # fmt: skip


_STEPS: dict[str, Callable[[dict[str, Any]], None]] = {"prepare": _prepare, "work": _work}

if __name__ == "__main__":
    main()

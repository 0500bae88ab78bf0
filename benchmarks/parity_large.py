"""DiLoCo against central training at a size that needs a GPU, in pieces: unattended, and resumable.

    python -m benchmarks.parity_large --out DIR [--minutes 9] [--preset 100m] [--tokens 300e6] [--json FILE] ...

One card plays all workers in turn: the real engine, journal, executor and trainer under a virtual clock
(simulator/virtual). Each call works for `--minutes` at most and leaves everything in DIR; call it again until its
exit code is 0 (3: there is more to do). First comes the central run, saved between two steps, then the swarm, which
goes on from its journal as a coordinator does after a restart. Same first weights, tokens and evaluation.
Goal for the 100M preset, 8 workers, 300M tokens: DiLoCo within 3 % of central.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from barnraise.pretrain.central import CentralPlan, CentralTraining, cosine, first_shard
from benchmarks.gpu_where import where_we_are
from benchmarks.parity_routing import necessity_percent, random_loss
from benchmarks.report import Cell, machine, print_rows, write_json
from coordinator.datasets import prepare
from coordinator.run.folder import RunFolder, init_run
from coordinator.run.opened import OpenedRun
from coordinator.settings import RunSettings
from moe.full import evaluate_loss, full_model
from moe.presets import PRESETS
from protocol.errors import ConfigError
from protocol.recipe import MUON, OPTIMIZERS
from simulator.virtual.inner import PureLeases, Shards
from simulator.virtual.swarm import STILL, VirtualSwarm
from simulator.virtual.volunteer import Volunteer

EXIT_MORE = 3
HELDOUT_SEQUENCES = 512
_RATES = ("lr", "muon_lr", "central_lr", "central_muon_lr")
_SIZES = ("preset", "data", "tokens", "workers", "inner_steps", "batch", "sequence_length")
_PLAN = (*_SIZES, "optimizer", *_RATES, "seed")


class Budget:
    """How long this call may still work."""

    def __init__(self, minutes: float) -> None:
        self._until_s = time.monotonic() + 60.0 * minutes

    @property
    def is_spent(self) -> bool:
        """Whether it is time to leave the rest to the next call."""
        return time.monotonic() >= self._until_s


def main(arguments: Sequence[str] | None = None) -> int:
    """Work for one piece; the exit code."""
    args = _arguments(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    _same_plan(args)
    run = _run_folder(args)
    budget = Budget(args.minutes)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    dtype = where_we_are(device).compute
    results = _results(args.out)
    if "central" not in results and not _centrally(args, run, device, dtype, budget):
        return EXIT_MORE
    if "diloco" not in results and not _by_swarm(args, run, device, dtype, budget):
        return EXIT_MORE
    rows = _rows(_results(args.out))
    print(f"{machine()}, {_device_name(device)}, torch {torch.__version__}; {args.preset}, {args.workers} workers")
    print_rows(rows)
    if args.json is not None:
        write_json(args.json, rows)
    return 0


def _centrally(
    args: argparse.Namespace, run: RunFolder, device: str, dtype: torch.dtype | None, budget: Budget
) -> bool:
    """Go on with the central run; whether it is done."""
    settings, kept = run.settings(), args.out / "central.pt"
    batch = args.batch * args.workers
    steps = _rounds(args) * args.inner_steps
    swarm_recipe = settings.engine_config(run_id=run.run_id, columns=1, train_sequences=10**12).inner
    recipe = dataclasses.replace(swarm_recipe, learning_rate=args.central_lr, muon_learning_rate=args.central_muon_lr)
    plan = CentralPlan(
        recipe=recipe,
        steps=steps,
        batch_sequences=batch,
        sequence_length=args.sequence_length,
        data_seed=settings.seed,
        factor_at=cosine(recipe.final_lr_share, steps),
    )
    shard = first_shard(run, device=device, compute_dtype=dtype)
    training = CentralTraining(shard, plan, run.dataset(), micro_batch=args.micro_batch)
    if kept.is_file():
        training.take_up(torch.load(kept, map_location=device, weights_only=True))
    started_s, first, told_s = time.perf_counter(), training.step, 0.0
    while not training.is_done and not budget.is_spent:
        loss = training.advance()
        if time.monotonic() - told_s > 10.0 or training.is_done:
            told_s = time.monotonic()
            speed = (training.step - first) * batch * args.sequence_length / (time.perf_counter() - started_s)
            print(f"central: step {training.step} of {steps}, loss {loss:.4f}, {speed:,.0f} tokens/s", flush=True)
    if not training.is_done:
        temporary = kept.with_suffix(".new")
        torch.save(training.state(), temporary)
        temporary.replace(kept)
        return False
    blocks = training.shard.held_blocks()
    random = random_loss(run, blocks, HELDOUT_SEQUENCES, device)
    _keep(args.out, "central", {"val_loss": _held_out(run, blocks, device), "steps": steps, **random})
    kept.unlink(missing_ok=True)
    return True


def _by_swarm(args: argparse.Namespace, run: RunFolder, device: str, dtype: torch.dtype | None, budget: Budget) -> bool:
    """Go on with the swarm; whether it is done."""
    opened = OpenedRun.open(run, STILL)
    try:
        crew = [Volunteer(name=str(number)) for number in range(args.workers)]
        training = PureLeases(Shards(opened.layout, device=device, compute_dtype=dtype), micro_batch=args.micro_batch)
        swarm = VirtualSwarm(opened, crew, training, seed=args.seed)
        state = opened.engine.state
        version = state.version
        while not swarm.is_over and not budget.is_spent:
            swarm.advance()
            if state.version != version:
                version = state.version
                print(f"swarm: version {version} of {_rounds(args)}", flush=True)
        if not swarm.is_over:
            return False
        blocks = opened.versions.load_blocks(opened.versions.manifest(state.manifest))
        rejected = sum(state.totals.submissions_rejected.values())
        loss = _held_out(run, blocks, device)
        random = random_loss(run, blocks, HELDOUT_SEQUENCES, device)
        _keep(args.out, "diloco", {"val_loss": loss, "rounds": int(version), "rejected": rejected, **random})
        return True
    finally:
        opened.close()


def _held_out(run: RunFolder, blocks: Any, device: str) -> float:
    settings = run.settings()
    tokens = run.dataset().heldout_all(settings.sequence_length, HELDOUT_SEQUENCES)
    model: Any = full_model(run.layout(), blocks)
    model.to(device)
    return evaluate_loss(model, torch.from_numpy(tokens.astype("int64")), settings.evaluation_batch)[0]


def _rounds(args: argparse.Namespace) -> int:
    a_round = args.workers * args.inner_steps * args.batch * args.sequence_length
    return max(1, round(float(args.tokens) / float(a_round)))


def _run_folder(args: argparse.Namespace) -> RunFolder:
    folder = args.out / "run"
    with contextlib.suppress(ConfigError):
        return RunFolder.open(folder)
    data = args.out / "data"
    if not any(data.glob("*/")):
        prepare([args.data], data)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    settings = RunSettings(
        name=f"parity {args.preset}",
        preset=args.preset,
        data=str(data),
        sequence_length=args.sequence_length,
        seed=args.seed,
        evaluation_device=device,
        sim_secret_from_seed=True,
        engine={
            "max_rounds": _rounds(args),
            "min_workers": args.workers,
            "gather_s": 0.0,
            "validate_every": 10,
            "checkpoint_every": 0,
            "inner": {
                "inner_steps": args.inner_steps,
                "batch_sequences": args.batch,
                "optimizer": args.optimizer,
                "learning_rate": args.lr,
                "muon_learning_rate": args.muon_lr,
            },
        },
    )
    return init_run(folder, settings)


def _same_plan(args: argparse.Namespace) -> None:
    """What is in the folder belongs to one plan; another one needs another folder."""
    wanted = {name: getattr(args, name) for name in _PLAN}
    path = args.out / "plan.json"
    if not path.is_file():
        path.write_text(json.dumps(wanted, indent=2))
    elif json.loads(path.read_text()) != wanted:
        raise SystemExit(f"{args.out} holds another plan ({path}): choose another folder")


def _results(out: Path) -> dict[str, dict[str, Any]]:
    return {path.stem[7:]: json.loads(path.read_text()) for path in sorted(out.glob("result-*.json"))}


def _keep(out: Path, name: str, result: dict[str, Any]) -> None:
    (out / f"result-{name}.json").write_text(json.dumps(result))


def _rows(results: dict[str, dict[str, Any]]) -> list[dict[str, Cell]]:
    central = results["central"]
    return [
        {
            "setting": name,
            "over_central_percent": 100.0 * (found["val_loss"] / central["val_loss"] - 1.0),
            "routing_percent": necessity_percent({0: found}, {0: central}),
            **found,
        }
        for name, found in results.items()
    ]


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where everything is kept between calls")
    parser.add_argument("--minutes", type=float, default=9.0, help="how long this call may work")
    parser.add_argument("--preset", default="100m", choices=PRESETS)
    parser.add_argument("--data", default="stdlib", help="folder, file, stdlib, or datasets:NAME")
    parser.add_argument("--tokens", type=float, default=300e6, help="of all workers together")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--inner-steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=32, help="sequences a worker's inner step takes")
    parser.add_argument("--micro-batch", type=int, default=None, help="sequences in memory at a time")
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--optimizer", default=MUON, choices=OPTIMIZERS)
    parser.add_argument("--lr", type=float, default=1e-3, help="the swarm's rate of AdamW")
    parser.add_argument("--muon-lr", type=float, default=0.02, help="the swarm's rate of Muon")
    parser.add_argument("--central-lr", type=float, default=1e-3)
    parser.add_argument("--central-muon-lr", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the rows to FILE, too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())

"""What a swarm's training is worth beside central training: same model, data, tokens and evaluation.

    python -m benchmarks.parity [--quick] [--codecs | --rungs] [--jobs N] [--seeds 11,12,13] [--rows 'NAME;...']
                                [--set KEY=VALUE ...] [--out DIR] [--kept] [--json FILE]

Every row is trained from the same first weights on equal tokens: centrally (the batch of all workers at each step), by
one worker alone, and by swarms of the real engine, executor and trainer in virtual time: rows in parity_rows.py. Losses
are held-out, nats a token; `val_loss_se` is the standard error over the seeds; `over` is the distance to the row that
it is compared with, in percent, paired by seed; `routing_percent` is routing necessity: what random experts of equal
load cost, as a share of what they cost central training (parity_routing.py). Rows by what is sent (`--codecs`) or by
what is computed with (`--rungs`). `--set` changes a setting, with `central.` one of `inner`. DIR keeps rows.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import structlog

from benchmarks.parity_routing import random_loss
from benchmarks.parity_rows import (
    CENTRAL,
    TABLES,
    WORKERS,
    ParityCase,
    central_base,
    training_of,
    volunteers,
)
from benchmarks.parity_table import table
from benchmarks.report import machine, print_rows, write_results
from coordinator.engine.config import InnerRecipe
from protocol.manifest import Manifest

REPORT_SEEDS = (11, 12, 13)
SEQUENCE_LENGTH = 128
HELDOUT_SEQUENCES = 512
STEPS = 200
"""Inner steps of each worker, and steps of central training."""


def run_case(case: ParityCase, seed: int, steps: int, changes: Mapping[str, str], data: str) -> dict[str, Any]:
    """Train one row with one seed; its held-out loss and what it took. Runs in a process of its own."""
    import torch

    from coordinator.run.folder import RunFolder, init_run
    from simulator.seeds import derived_seed

    torch.set_num_threads(1)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="barnraise-parity-") as folder:
        settings = _settings(case, derived_seed(seed, "parity"), steps, changes, data)
        if case.base:
            base = central_base(Path(data), derived_seed(seed, "parity"), int(case.base * steps))
            settings = settings.model_copy(update={"preset": None, "checkpoint": str(base)})
        init_run(Path(folder) / "run", settings, accept_lossy=True)
        run = RunFolder.open(Path(folder) / "run")
        if case.setting in {"central", "lone"}:
            result = _centrally(run, case, steps, _central_recipe(case, changes))
        else:
            result = _by_swarm(run, case, derived_seed(seed, "volunteers"))
    return {"row": case.name, "seed": seed, **result, "wall_s": time.perf_counter() - started_s}


def _settings(case: ParityCase, seed: int, steps: int, changes: Mapping[str, str], data: str) -> Any:
    from coordinator.settings import RunSettings

    table: dict[str, Any] = copy.deepcopy(dict(case.engine or {}))
    for key, text in changes.items():
        if key.startswith("central."):
            continue
        place, _, leaf = key.rpartition(".")
        (table.setdefault(place, {}) if place else table)[leaf] = json.loads(text)
    inner_steps = int(table.get("inner", {}).get("inner_steps", InnerRecipe().inner_steps))
    table.setdefault("heartbeat_interval_s", 5.0)
    table |= {
        "max_rounds": max(1, round(case.rounds * steps / inner_steps)),
        "min_workers": WORKERS,
        "gather_s": 0.0,
        "validate_every": 0,
        "checkpoint_every": 0,
    }
    return RunSettings(
        name=f"parity {case.name}",
        preset="tiny",
        data=data,
        residency="absent" if case.setting == "half_absent" else "frozen",
        codec=case.codec,
        sequence_length=SEQUENCE_LENGTH,
        seed=seed,
        heldout_limit=HELDOUT_SEQUENCES,
        sim_secret_from_seed=True,
        engine=table,
    )


def _centrally(run: Any, case: ParityCase, steps: int, recipe: InnerRecipe) -> dict[str, Any]:
    import torch

    from barnraise.pretrain.central import CentralPlan, CentralTraining, first_shard
    from moe.full import evaluate_loss, full_model

    settings, dataset = run.settings(), run.dataset()
    batch = recipe.batch_sequences * (WORKERS if case.setting == "central" else 1)
    plan = CentralPlan(
        recipe=recipe,
        steps=steps,
        batch_sequences=batch,
        sequence_length=settings.sequence_length,
        data_seed=settings.seed,
        factor_at=_factor_at(recipe, steps),
    )
    training = CentralTraining(first_shard(run), plan, dataset)
    while not training.is_done:
        training.advance()
    tokens = torch.from_numpy(dataset.heldout_all(settings.sequence_length, HELDOUT_SEQUENCES).astype("int64"))
    blocks = training.shard.held_blocks()
    loss, _ = evaluate_loss(full_model(run.layout(), blocks), tokens, settings.evaluation_batch)
    return {"val_loss": loss, "sequences": steps * batch, **random_loss(run, blocks, HELDOUT_SEQUENCES)}


def _factor_at(recipe: InnerRecipe, steps: int) -> Callable[[int], float]:
    """How central training's rates fall: as a swarm's of that recipe, step by step."""
    from barnraise.pretrain.central import cosine

    if recipe.schedule == "cosine":
        return cosine(recipe.final_lr_share, steps)
    rise, final = cosine(1.0, steps), recipe.final_lr_share

    def factor(step: int) -> float:
        left = min(1.0, (steps - 1 - step) / max(1.0, recipe.decay_share * (steps - 1)))
        return rise(step) * (final + (1.0 - final) * left)

    return factor


def _by_swarm(run: Any, case: ParityCase, seed: int) -> dict[str, Any]:
    from coordinator.run.opened import OpenedRun
    from simulator.virtual.swarm import STILL, VirtualSwarm

    opened = OpenedRun.open(run, STILL)
    try:
        crew = list(volunteers(case, opened.layout.columns))
        swarm = VirtualSwarm(opened, crew, training_of(case, opened.layout), seed=seed)
        swarm.play()
        state = opened.engine.state
        blocks = opened.versions.load_blocks(opened.versions.manifest(state.manifest))
        return {
            **random_loss(run, blocks, HELDOUT_SEQUENCES),
            "val_loss": state.validations[-1].val_loss,
            "blocks": _digest_of_blocks(opened.versions.manifest(state.manifest)),
            "sequences": swarm.trained_sequences,
            "rounds": len(state.history),
            "accepted": state.totals.submissions_accepted,
            "rejected": sum(state.totals.submissions_rejected.values()),
            "rejected_for": dict(state.totals.submissions_rejected),
            "expired": state.totals.leases_expired,
        }
    finally:
        opened.close()


def _digest_of_blocks(manifest: Manifest) -> str:
    """One digest over all blocks: equal exactly where two runs ended with the same model, bit for bit."""
    named = {block: ref.digest for block, ref in manifest.blocks.items()}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def main() -> None:
    """Measure and print."""
    args = _arguments()
    changes = dict(change.split("=", 1) for change in args.set)
    every, columns = TABLES[args.rows_of]
    cases = [case for case in every if not args.rows or case.name in args.rows.split(";")]
    steps = args.steps or (60 if args.quick else STEPS)
    seeds = (
        [int(seed) for seed in args.seeds.split(",")] if args.seeds else list(REPORT_SEEDS[: 1 if args.quick else 3])
    )
    args.out.mkdir(parents=True, exist_ok=True)
    data = _prepared(args.out)
    results = _run_all(cases, seeds, steps, changes, data, args.out, 0 if args.kept else args.jobs)
    rows = [row for row in table(cases, results) if row["seeds"] or not args.kept]
    print(
        f"{machine()}; {WORKERS} workers, {steps} inner steps, seeds {','.join(map(str, seeds))} {' '.join(args.set)}"
    )
    print_rows(rows)
    if args.json is not None:
        there = ",".join(map(str, sorted({result["seed"] for result in results})))
        of = " ".join(filter(None, (args.rows_of, args.rows and f"--rows '{args.rows}'")))
        command = f"python -m benchmarks.parity {of} --steps {steps} --seeds {there}"
        write_results(args.json, rows, command=command, columns=columns, beside="beside other work")


def _run_all(
    cases: Sequence[ParityCase],
    seeds: Sequence[int],
    steps: int,
    changes: Mapping[str, str],
    data: str,
    out: Path,
    jobs: int,
) -> list[dict[str, Any]]:
    """Whatever is not in `out` yet, `jobs` at a time (0: none); each result is kept as soon as it is there."""
    done: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs or 1, mp_context=context) as pool:
        waiting = {}
        for seed in seeds:
            for case in cases:
                path = out / f"{_key(case, seed, steps, changes)}.json"
                if path.is_file():
                    done.append(json.loads(path.read_text()))
                elif jobs:
                    waiting[pool.submit(run_case, case, seed, steps, changes, data)] = path
        for number, future in enumerate(as_completed(waiting), start=1):
            result = future.result()
            waiting[future].write_text(json.dumps(result))
            done.append(result)
            shown = f"{result['row']}, seed {result['seed']}: {result['val_loss']:.4f} ({result['wall_s']:.0f} s)"
            print(f"{number}/{len(waiting)} {shown}", flush=True)
    return done


def _key(case: ParityCase, seed: int, steps: int, changes: Mapping[str, str]) -> str:
    """A file name that differs wherever the training does."""
    from protocol.ids import RunId

    settings = _settings(case, seed, steps, changes, data="")
    config = settings.engine_config(run_id=RunId(""), columns=1, train_sequences=1)
    alone = case.setting in {"central", "lone"}
    recipe = _central_recipe(case, changes) if alone else config
    text = repr(
        (
            case.setting,
            case.moments,
            case.dropout,
            case.slowest,
            seed,
            steps,
            recipe,
            WORKERS,
            SEQUENCE_LENGTH,
            HELDOUT_SEQUENCES,
            *(("eager",) if case.eager else ()),
            *((f"base of {case.base}",) if case.base else ()),
        )
    )
    return f"{case.name.replace(',', '').replace(' ', '-')}-{seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _central_recipe(case: ParityCase, changes: Mapping[str, str]) -> InnerRecipe:
    """The swarm's recipe, with what is central training's own."""
    of_row = dict(case.engine or {}).get("inner", CENTRAL)
    inner = {key.removeprefix("inner."): json.loads(text) for key, text in changes.items() if key.startswith("inner.")}
    own = {
        key.removeprefix("central."): json.loads(text) for key, text in changes.items() if key.startswith("central.")
    }
    return dataclasses.replace(InnerRecipe(), **{**inner, **of_row, **own})


def _prepared(out: Path) -> str:
    """The standard library's source as tokens, prepared once."""
    from coordinator.datasets import prepare

    target = out / "data"
    if not target.exists():
        partial = out / f".data.{os.getpid()}"
        try:
            prepare(["stdlib"], partial)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return str(target)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60 steps, one seed: the same columns in a few minutes")
    parser.add_argument("--jobs", type=int, default=2, help="rows trained at a time, one thread each")
    parser.add_argument("--seeds", default="", help="comma-separated; the report's by default")
    parser.add_argument("--rows", default="", help="names of rows, separated by semicolons; all by default")
    instead = parser.add_mutually_exclusive_group()
    for option, told in {"--codecs": "rows by codec, rule and steps a round", "--rungs": "rows by rung"}.items():
        instead.add_argument(option, dest="rows_of", action="store_const", const=option, default="", help=told)
    parser.add_argument("--steps", type=int, default=0, help=f"inner steps of each worker; {STEPS} by default")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a change to the recipe")
    parser.add_argument("--out", type=Path, default=Path("parity-results"), help="where results are kept")
    parser.add_argument("--kept", action="store_true", help="train nothing: the rows of results that are in DIR")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the rows to FILE, too")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()

"""One run of `benchmarks.byzantine`: a micro model, the real engine, executor and trainer, virtual time, and liars.

Decides the model (about 46,000 parameters), the recipe and what is measured: final held-out loss, how often the trigger
works, who was banned, and which honest work was refused. Touches one temporary folder and the benchmark's own.

Shape suffixes: N sequences, T tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.byzantine_rows import DEFENCES, NOBODY, SHARDS, ByzantineCase

if TYPE_CHECKING:
    from protocol.ids import WorkerId
    from simulator.adversaries.adversary import Adversary
    from simulator.virtual.swarm import VirtualSwarm

SEQUENCE_LENGTH = 32
INNER_STEPS, BATCH_SEQUENCES = 4, 8
HELDOUT_SEQUENCES = 1024
SCREENING_SEQUENCES = 64
"""The product's own default."""
TRIGGERED_SEQUENCES = 512
KEPT_ROUNDS = 4
"""Rounds of leases whose training is remembered: as long as audits may come."""
MICRO: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
"""What of the preset `tiny` is smaller: two layers, eight experts, top 2."""
RECIPE: Mapping[str, Any] = {
    "inner_steps": INNER_STEPS,
    "batch_sequences": BATCH_SEQUENCES,
    "learning_rate": 0.016,
    "muon_learning_rate": 0.08,
    "warmup_rounds": 0,
}


def micro_checkpoint(folder: Path, seed: int) -> Path:
    """A micro model with fresh weights, as a checkpoint in `folder`; made once for each seed."""
    from moe.config import config_from_json, config_to_json
    from moe.export import export_checkpoint
    from moe.full import initial_blocks
    from moe.layout import layout
    from moe.presets import preset

    target = folder / f"micro-{seed}"
    if not target.exists():
        config = config_from_json({**config_to_json(preset("tiny")), **MICRO})
        cut = layout(config, "frozen")
        partial = folder / f".micro-{seed}.{os.getpid()}"
        export_checkpoint(initial_blocks(config, cut, seed), cut, partial)
        with contextlib.suppress(OSError):  # another process was first
            partial.rename(target)
    return target


def prepared(folder: Path) -> str:
    """The standard library's source as bytes, prepared once."""
    from coordinator.datasets import prepare

    target = folder / "data"
    if not target.exists():
        partial = folder / f".data.{os.getpid()}"
        prepare(["stdlib"], partial)
        partial.rename(target)
    return str(target)


def run_case(case: ByzantineCase, rounds: int, folder: Path) -> dict[str, Any]:
    """Play one run; its figures. For a process of its own."""
    import structlog
    import torch

    from coordinator.run.folder import init_run
    from coordinator.run.opened import OpenedRun
    from simulator.seeds import derived_seed
    from simulator.virtual.swarm import STILL

    torch.set_num_threads(1)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    started_s = time.process_time()
    with tempfile.TemporaryDirectory(prefix="barnraise-byzantine-") as scratch:
        checkpoint = micro_checkpoint(folder, case.seed)
        settings = settings_of(case, rounds, derived_seed(case.seed, "byzantine"), str(folder / "data"), checkpoint)
        opened = OpenedRun.open(init_run(Path(scratch) / "run", settings, accept_lossy=True), STILL)
        try:
            return {**_played(case, opened), "cpu_s": time.process_time() - started_s}
        finally:
            opened.close()


def settings_of(case: ByzantineCase, rounds: int, seed: int, data: str, checkpoint: Path) -> Any:
    """The run's settings: the product's defaults, the benchmark's rounds and recipe, and the defence's over these."""
    from coordinator.beginning import merged
    from coordinator.settings import RunSettings

    table = {
        "max_rounds": rounds,
        "min_workers": case.n - case.f if case.attack == NOBODY else case.n,
        "gather_s": 0.0,
        "heartbeat_interval_s": 2.0,
        "min_lease_s": 5.0,
        "validate_every": 0,
        "checkpoint_every": 0,
        "inner": dict(RECIPE),
    }
    return RunSettings(
        name="byzantine",
        checkpoint=str(checkpoint),
        data=data,
        codec=case.codec,
        sequence_length=SEQUENCE_LENGTH,
        seed=seed,
        heldout_limit=HELDOUT_SEQUENCES,
        screening_sequences=SCREENING_SEQUENCES,
        sim_secret_from_seed=True,
        engine=merged(table, DEFENCES[case.defence]),
    )


def swarm_of(
    case: ByzantineCase, opened: Any, on_verdict: Callable[[Any], None] = lambda _: None
) -> tuple[VirtualSwarm, dict[WorkerId, Adversary]]:
    """The honest of a case and its liars, ready to play; and what each of the liars does."""
    from simulator.adversaries.adversary import Adversary
    from simulator.adversaries.files import attack_named
    from simulator.seeds import derived_seed
    from simulator.virtual.inner import PureLeases, Shards
    from simulator.virtual.swarm import VirtualSwarm
    from simulator.virtual.volunteer import Volunteer, as_liar

    everybody = [
        Volunteer(
            name=str(number),
            max_columns=SHARDS[case.shards],
            trusted=case.f <= number < case.f + case.trusted,
        )
        for number in range(case.n)
    ]
    crew, colluders = everybody[case.f :], {}
    if case.attack != NOBODY:
        attack, vocab_size = attack_named(case.attack), opened.dataset.vocab_size
        for number, volunteer in enumerate(everybody[: case.f]):
            liar = as_liar(volunteer, attack.conduct)
            crew.append(liar)
            seed = derived_seed(case.seed, "attack", number)
            colluders[liar.worker] = Adversary.of(attack=case.attack, strength=None, seed=seed, vocab_size=vocab_size)
    training = Remembered(PureLeases(Shards(opened.layout)), KEPT_ROUNDS * case.n)
    swarm = VirtualSwarm(opened, crew, training, seed=case.seed, colluders=colluders, on_verdict=on_verdict)
    return swarm, colluders


def _played(case: ByzantineCase, opened: Any) -> dict[str, Any]:
    counts = VerdictCounts()
    swarm, colluders = swarm_of(case, opened, counts.note)
    swarm.play()
    state = opened.engine.state
    banned = [record.worker for record in state.workers.values() if record.ban is not None]
    return {
        **dataclasses.asdict(case),
        "val_loss": state.validations[-1].val_loss,
        "triggers": trigger_rates(opened),
        "byzantine_banned": sum(worker in colluders for worker in banned),
        "honest_banned": sum(worker not in colluders for worker in banned),
        **counts.figures(frozenset(colluders)),
        "rounds": len(state.history),
        "virtual_s": state.now_s,
    }


class VerdictCounts:
    """What became of submissions, honest and not. A verdict that is taken back counts as its last word."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, bool, str]] = {}

    def note(self, command: Any) -> None:
        """A worker is told what became of its submission."""
        verdict = command.verdict
        self._last[command.lease_id] = command.worker, command.accepted, verdict.key

    def figures(self, liars: frozenset[str]) -> dict[str, Any]:
        """Counts, and for what honest work was refused."""
        honest = [(accepted, key) for worker, accepted, key in self._last.values() if worker not in liars]
        lies = [accepted for worker, accepted, _ in self._last.values() if worker in liars]
        refused: dict[str, int] = {}
        for accepted, key in honest:
            if not accepted:
                refused[key] = refused.get(key, 0) + 1
        return {
            "honest_accepted": sum(accepted for accepted, _ in honest),
            "honest_refused": sum(refused.values()),
            "honest_refused_for": refused,
            "byzantine_accepted": sum(lies),
            "byzantine_refused": len(lies) - sum(lies),
        }


class Remembered:
    """Training that gives the same answer twice without computing it twice, as whoever audits an honest lease wants.

    That is no cheating: a lease is a pure function, one machine comes to the same bits (tests/worker/train), and what
    replays differ by elsewhere is another benchmark's. What was trained on other sequences or steps is computed.
    """

    def __init__(self, training: Any, kept: int) -> None:
        self._training, self._kept = training, kept
        self._results: dict[tuple[Any, ...], Any] = {}

    def __call__(self, worker: Any, lease: Any, start: Any, sequences_NL: Any, /) -> Any:
        """As the training itself."""
        digest = hashlib.sha256(sequences_NL.tobytes()).digest()
        key = (
            lease.base_version,
            lease.columns,
            lease.seed,
            lease.inner_steps,
            digest,
        )  # a shadow lease has another id
        if key not in self._results:
            self._results[key] = self._training(worker, lease, start, sequences_NL)
            if len(self._results) > self._kept:
                del self._results[next(iter(self._results))]
        return self._results[key]


def trigger_rates(opened: Any) -> dict[str, float]:
    """For each trigger of the table, the share of held-out sequences after which the model says the chosen token."""
    import torch

    from moe.full import full_model
    from simulator.adversaries.data import NATURAL, PLANTED

    versions = opened.versions
    model = full_model(opened.layout, versions.load_blocks(versions.manifest(opened.engine.state.manifest)))
    model.train(mode=False)
    clean_NT = opened.dataset.heldout_all(SEQUENCE_LENGTH, TRIGGERED_SEQUENCES).astype("int64")[:, :-1]
    rates = {}
    for name, backdoor in (("planted", PLANTED), ("natural", NATURAL)):
        tokens_NT = clean_NT.copy()
        tokens_NT[:, -len(backdoor.trigger) :] = backdoor.trigger
        with torch.no_grad():
            said_N = model(torch.from_numpy(tokens_NT)).logits[:, -1].argmax(dim=-1)
        rates[name] = float((said_N == backdoor.token).float().mean())
    return rates

"""What the end of a round costs the coordinator: 16 submissions screened, aggregated, compared and validated.

    python -m benchmarks.round_end [--quick] [--delegated] [--json FILE]

A fresh run of the preset; a better model, made of it by a few steps of its own gradient's sign on training text; and
submissions that are steps towards it, each with noise of its own, so that gains are real. The coordinator's executor
carries out what the engine asks for at a round's end, one command after the other, as its own thread does: whole draws
(`screening.early_margin` and `region.early_margin` 0), a run's first round, of which nothing is known, a later one, and
one of those (a quarter) in which gains on a lease's own sequences are measured, too. Last, gains and the version's
validation are delegated to two trusted workers, of whose answers one in eight is checked by the other (two of sixteen):
the coordinator decodes, takes norms and reads answers, and serves over TLS as many bytes as they fetch, to another
process: submissions, and the step to the version, since they had the one before. The workers' own measuring runs here,
too, is a row of its own and in no sum. Whole models, bf16, every submission in bytes of its own (one in four differs by
more than a bit); versions are published as a run does that sets nothing, with their steps in int4. Rows: model, way,
stage (screening with decoding, serving, aggregation, trust region, validation), sequences through the model, wall
seconds, processor seconds of all threads and those over the threads: what a machine with so many idle cores takes; the
file has them as they come. `--quick`: the tiny preset alone. `--delegated`: the last way alone.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import structlog
import torch

from benchmarks.report import Cell, machine, parse_args, print_rows, write_json
from benchmarks.round_end_delegated import KINDS, THEIRS, Clocked, StageClocks, delegated, delegated_validation, serving
from coordinator.engine.commands import (
    AggregateRound,
    Contribution,
    MeasureSubmission,
    PublishedVersion,
    ValidateVersion,
)
from coordinator.engine.config import ScreeningConfig, TrustRegionConfig
from coordinator.engine.down_config import DownConfig
from coordinator.engine.early_stops import bounds
from coordinator.engine.enough import FEWEST_TO_PUBLISH, EarlyStop
from coordinator.engine.events import SubmissionMeasured
from coordinator.engine.history import UsualGain
from coordinator.engine.lease import GrantedLease
from coordinator.engine.screening import MIN_GAINS
from coordinator.engine.trust_region import early_stop
from coordinator.work.executor import Executor
from protocol.ids import Digest, LeaseId, RoundNumber, Version, WorkerId
from protocol.lease import DataRange
from protocol.recipe import Recipe

SUBMISSIONS, DISTINCT, THREADS = 16, KINDS, 2
STEPS, BATCH = 3, 8
OWN = 8
"""Sequences of each lease here; before and after go through the model."""
STEP = {"100m": 1e-3, "tiny": 4e-3}
"""Of each weight, by a step of the gradient's sign: about Adam's first."""
NOISE = 0.3
CODEC = "bf16"
WHOLE = "whole draws"
WAYS = (WHOLE, "first round", "later round", "own sequences")
DELEGATED = "delegated"


def main() -> None:
    """Measure and print."""
    args = parse_args(__doc__ or "", delegated="the last way alone")
    torch.set_num_threads(THREADS)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    rows: list[dict[str, Cell]] = []
    for preset in ("tiny",) if args.quick else ("tiny", "100m"):
        with tempfile.TemporaryDirectory(prefix="barnraise-round-end-") as folder:
            bench = RoundEnd(Path(folder), preset)
            usual = None
            for number, way in enumerate((DELEGATED,) if args.delegated else (*WAYS, DELEGATED), start=1):
                found, usual = bench.row(number, way, usual)
                rows += found
                print_rows(found)
                if args.json is not None:
                    write_json(args.json, rows)
    print(machine())


class RoundEnd:
    """One preset's run, and what was sent."""

    def __init__(self, folder: Path, preset: str) -> None:
        from coordinator.datasets import prepare
        from coordinator.run.folder import RunFolder, init_run
        from coordinator.run.opened import work_settings
        from coordinator.settings import RunSettings
        from coordinator.store.versions import Versions

        self.folder, self.submissions = folder, SUBMISSIONS
        prepare([str(Path(__file__).parents[1])], folder / "data")
        init_run(folder / "run", RunSettings(preset=preset, data=str(folder / "data"), codec=CODEC, seed=1))
        run = RunFolder.open(folder / "run")
        self.preset, self.layout, self.store = preset, run.layout(), run.artifacts()
        self.versions = Versions(run.root / "versions", self.store.blocks, self.layout)
        self.settings, self.dataset = work_settings(run.settings()), run.dataset()
        self.executor: dict[str, Any] = {
            "settings": self.settings,
            "layout": self.layout,
            "payloads": self.store.payloads,
            "versions": self.versions,
            "dataset": self.dataset,
            "companions": run.companions(self.dataset),
            "dtype": run.export_dtype,
            "checkpoints": run.checkpoints,
            "clock": time.monotonic,
        }
        found = self.versions.manifest_digest(0)
        assert found is not None
        self.base: Digest = found
        self.sent = self._sent()

    def row(self, number: int, way: str, usual: UsualGain | None) -> tuple[list[dict[str, Cell]], UsualGain | None]:
        """One round's end by a coordinator that was started for it; and what is usual after it."""
        clocks, executor = StageClocks(), Executor(**self.executor)
        # the parent was compared with others when it was new
        executor.losses.losses(self.base, 1, None if way == WHOLE else FEWEST_TO_PUBLISH)
        if way == DELEGATED:
            gains = delegated(self, executor, clocks)
        else:
            gains = self.screened(executor, clocks, number, None if way == "first round" else usual, way)
        command = self.aggregation(number, whole=way == WHOLE)
        comparing = executor.losses.compared

        def compared(*arguments: Any) -> Any:
            with clocks.running("trust region") as clocked:
                found = comparing(*arguments)
                clocked.sequences += found[0].sequences
                return found

        executor.losses.compared = compared  # type: ignore[method-assign, assignment]
        with clocks.running("aggregation"):
            aggregated: Any = executor.execute(command)
        region = clocks.stages["trust region"]
        clocks.stages["aggregation"].wall_s -= region.wall_s
        clocks.stages["aggregation"].cpu_s -= region.cpu_s
        validate = ValidateVersion(command_id="validate", version=aggregated.version, manifest=aggregated.manifest)
        if way == DELEGATED:
            delegated_validation(self, validate, clocks)
            serving(self, validate, clocks)
        else:
            with clocks.running("validation") as clocked:
                clocked.sequences = self.settings.heldout_limit
                executor.execute(validate)
        return self._rows(way, clocks), usual_after(gains)

    def _rows(self, way: str, clocks: StageClocks) -> list[dict[str, Cell]]:
        own = [one for stage, one in clocks.stages.items() if stage != THEIRS]
        total = Clocked(
            sum(one.wall_s for one in own), sum(one.cpu_s for one in own), sum(one.sequences for one in own)
        )
        return [
            {
                "model": self.preset,
                "way": way,
                "stage": stage,
                "sequences": one.sequences,
                "wall_s": one.wall_s,
                "cpu_s": one.cpu_s,
                "idle_cores_s": one.cpu_s / THREADS,
            }
            for stage, one in {**clocks.stages, "all": total}.items()
        ]

    def screened(
        self,
        executor: Executor,
        clocks: StageClocks,
        number: int,
        usual: UsualGain | None,
        way: str,
        *,
        own_data: bool = False,
    ) -> list[SubmissionMeasured]:
        """All submissions, one after the other; `usual`: what gains are where it is known before the first."""
        gains: list[SubmissionMeasured] = []
        for place in range(SUBMISSIONS):
            early = None if way == WHOLE else bounds(ScreeningConfig(), usual_after(gains) or usual, 1.0)
            own = own_data or way == "own sequences"
            command = self.command(place, early, number=number, own=own)
            with clocks.running("screening") as clocked:
                event = executor.execute(command)
            assert isinstance(event, SubmissionMeasured), event
            looked_at = 0 if event.own_gain is None else 2 * OWN
            clocked.sequences += event.part_sequences + event.full_sequences + looked_at
            gains.append(event)
        return gains

    def command(self, place: int, early: EarlyStop | None, *, number: int, own: bool) -> MeasureSubmission:
        """To measure one submission."""
        digest = self.sent[place]
        return MeasureSubmission(
            command_id=f"measure:{place}", lease=self._lease(place), digest=digest,
            payload_bytes=self.store.payloads.stat(digest) or 0, codec=CODEC, heldout_seed=number,
            measure_gain=True, early=early, own_data=own,
        )  # fmt: skip

    def _lease(self, place: int) -> GrantedLease:
        return GrantedLease(
            lease_id=LeaseId(f"r1.{place}"), round=RoundNumber(1), worker=WorkerId(f"{place:032x}"),
            base_version=Version(0), columns=tuple(range(self.layout.columns)),
            data=DataRange(seed=1, start=0, count=OWN), seed=1, inner_steps=2, batch_sequences=2, recipe=Recipe(),
            granted_at_s=0.0, deadline_s=1e9,
        )  # fmt: skip

    def aggregation(self, number: int, *, whole: bool) -> AggregateRound:
        """The outer step over all of them; `whole`: compared on the whole draw."""
        contributions = tuple(
            Contribution(
                lease_id=LeaseId(f"r{number}.{place}"), digest=self.sent[place], codec=CODEC,
                columns=tuple(range(self.layout.columns)), base_version=Version(0), step_scale=1.0, weight=1.0,
                sequences=OWN,
            )
            for place in range(SUBMISSIONS)
        )  # fmt: skip
        return AggregateRound(
            command_id=f"aggregate:r{number}", round=RoundNumber(number), parent_version=Version(0),
            parent_manifest=self.base, version=Version(number), contributions=contributions, clips=(),
            rule="trimmed_mean", outer_learning_rate=1.0, outer_momentum=0.0, seed=1, oldest_needed=Version(0),
            compared_with=(PublishedVersion(version=Version(0), manifest=self.base),), region_seed=1,
            early=None if whole else early_stop(TrustRegionConfig()), down=DownConfig(),
        )  # fmt: skip

    def _sent(self) -> list[Digest]:
        from moe.full import full_model, load_blocks
        from protocol.codecs import codec_named
        from protocol.submission import encode_submission

        base = self.versions.load_blocks(self.versions.manifest(self.base))
        model = full_model(self.layout, {block: dict(tensors) for block, tensors in base.items()})
        load_blocks(model, self.layout, base)
        tokens = torch.from_numpy(
            self.dataset.sequences(7, 0, STEPS * BATCH, self.settings.sequence_length).astype(int)
        )
        for batch in torch.split(tokens, BATCH):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:])
            parameters = list(model.parameters())
            with torch.no_grad():
                for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                    parameter.sub_(gradient.sign(), alpha=STEP[self.preset])
        better = self._blocks_of(model)
        found = []
        for kind in range(DISTINCT):
            torch.manual_seed(kind)
            step = {
                block: {name: _noisy(tensor - better[block][name]) for name, tensor in tensors.items()}
                for block, tensors in base.items()
            }
            payload = bytearray(encode_submission(step, codec_named(CODEC)))
            for place in range(kind, SUBMISSIONS, DISTINCT):
                payload[-2] = place  # the last bits of the last value
                found.append((place, self.store.payloads.put(bytes(payload))))
        return [digest for _, digest in sorted(found)]

    def _blocks_of(self, model: Any) -> dict[Any, dict[str, torch.Tensor]]:
        from protocol.ids import column_of

        named = dict(model.named_parameters())
        return {
            block: {
                spec.name: (named[spec.name] if column_of(block) is None else named[spec.name][column_of(block)]).data
                for spec in self.layout.block_specs(block)
            }
            for block in self.layout.blocks
        }


def _noisy(step: torch.Tensor) -> torch.Tensor:
    return step + NOISE * step.abs().mean() * torch.randn_like(step)


def usual_after(gains: list[SubmissionMeasured]) -> UsualGain | None:
    """What gains are usual, as the engine has it of what it accepted."""
    if len(gains) < MIN_GAINS:
        return None
    spread = median(one.part_spread for one in gains)
    return UsualGain(gain=median(one.heldout_gain for one in gains), spread=spread)


if __name__ == "__main__":
    main()

"""How far real leases lie from themselves computed again: the distances that `benchmarks.sleepers` draws from.

    python -m benchmarks.replays [--leases N] [--first N] [--minutes M] --json FILE

The micro model of `benchmarks.byzantine` on the standard library's source; each lease begins where the one before it
ended, and has a length, an optimizer and a codec of its own. A worker trains it on one number of threads and in
micro-batches of one size, `worker.train.replay` computes it again on another, both go through the codec, and the larger
of trunk and worst column counts. Lies are computed for the same leases. Rows: `kind`, `leases`, `median`, `largest`,
`smallest`, `above` (share above the audits' default tolerance) and the `distances` themselves.

Shape suffixes: N sequences, L tokens and one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.byzantine_run import BATCH_SEQUENCES, MICRO, SEQUENCE_LENGTH, prepared
from benchmarks.report import machine, print_rows
from coordinator.engine.config import AuditConfig
from protocol.ids import LeaseId, RoundNumber, Version
from protocol.lease import DataRange, Lease
from protocol.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moe.layout import Layout
    from protocol.submission import Blocks

HONEST: Final = "honest"
STEPS: Final = (4, 10, 20)
LIED_EVERY: Final = 5
"""A fifth of the leases are lied about, too: each lie takes as long as a lease."""
_COLUMNS: Final = [{"heading": "what was sent", "shows": "{kind}"}, {"heading": "leases", "shows": "{leases}"}]
_COLUMNS.extend({"heading": name, "shows": f"{{{name}:.2g}}"} for name in ("smallest", "median", "largest"))
_COLUMNS.append({"heading": "above the tolerance", "shows": "{above:.0%}"})


class Replays:
    """One chain of leases of a micro model."""

    def __init__(self, data: str) -> None:
        from coordinator.datasets import Dataset
        from moe.config import config_from_json, config_to_json
        from moe.full import initial_blocks
        from moe.layout import layout
        from moe.presets import preset

        config = config_from_json({**config_to_json(preset("tiny")), **MICRO})
        self._layout: Layout = layout(config, "frozen")
        self._blocks = dict(initial_blocks(config, self._layout, 1))
        self._dataset = Dataset.open(data)
        self.distances: dict[str, list[float]] = {HONEST: []}

    def lease(self, number: int) -> None:
        """Train it as a worker does, compute it again, and lie about it now and then."""
        draw = random.Random(number)
        steps, codec = draw.choice(STEPS), draw.choice(("bf16", "fp32"))
        count = steps * BATCH_SEQUENCES
        lease = Lease(
            lease_id=LeaseId(f"r{number}.1"),
            round=RoundNumber(number),
            base_version=Version(number),
            columns=tuple(range(8)) if draw.random() < 0.5 else (0, 2, 3, 6),
            data=DataRange(seed=number, start=0, count=count),
            seed=number,
            inner_steps=steps,
            batch_sequences=BATCH_SEQUENCES,
            recipe=Recipe(optimizer=draw.choice(("muon", "adamw"))),
        )
        tokens_NL = self._tokens(number, count)
        base = dict(self._blocks)
        sent = self._computed(lease, base, tokens_NL, draw.choice((0, 1, 2, 3, 8)), draw.choice((1, 2)))
        again = self._computed(lease, base, tokens_NL, draw.choice((0, 1, 2, 3, 8)), draw.choice((1, 2)))
        self._note(HONEST, lease, sent, again, codec)
        if number % LIED_EVERY == 0:
            longer = {block: {name: one * 1.01 for name, one in tensors.items()} for block, tensors in again.items()}
            self._note("all 1 % longer", lease, longer, again, codec)
            for lie, other, others_NL in self._lies(lease, tokens_NL):
                self._note(lie, lease, self._computed(other, base, others_NL, 0, 1), again, codec)
        for block, tensors in sent.items():
            self._blocks[block] = {
                name: tensor - tensors[name].to(tensor.dtype) if name in tensors else tensor
                for name, tensor in self._blocks[block].items()
            }

    def _tokens(self, seed: int, count: int) -> NDArray[Any]:
        return self._dataset.sequences(seed, 0, count, SEQUENCE_LENGTH).astype("int64")

    def _computed(self, lease: Lease, base: Blocks, tokens_NL: Any, micro_batch: int, threads: int) -> Blocks:
        from worker.train.replay import replay_lease

        return replay_lease(self._layout, threads=threads)(lease, base, tokens_NL, micro_batch)[0]

    def _lies(self, lease: Lease, tokens_NL: Any) -> list[tuple[str, Lease, Any]]:
        other_NL = self._tokens(lease.seed + 10**6, len(tokens_NL))
        poisoned_NL = tokens_NL.copy()
        every = range(0, len(tokens_NL), 10)
        poisoned_NL[list(every)] = other_NL[list(every)]
        fewer, half = lease.inner_steps - 1, lease.inner_steps // 2

        def at_rate(factor: float) -> Lease:
            recipe = lease.recipe
            rates = (recipe.learning_rate * factor, recipe.muon_learning_rate * factor)
            return replace(lease, recipe=replace(recipe, learning_rate=rates[0], muon_learning_rate=rates[1]))

        def of_steps(steps: int) -> tuple[Lease, Any]:
            count = steps * BATCH_SEQUENCES
            return replace(lease, inner_steps=steps, data=replace(lease.data, count=count)), tokens_NL[:count]

        return [
            ("rate 0.2 % higher", at_rate(1.002), tokens_NL),
            ("rate 2 % higher", at_rate(1.02), tokens_NL),
            ("one step fewer", *of_steps(fewer)),
            ("half of the steps", *of_steps(half)),
            ("a tenth of the data another", lease, poisoned_NL),
            ("all data another", lease, other_NL),
        ]

    def _note(self, kind: str, lease: Lease, sent: Blocks, again: Blocks, codec: str) -> None:
        from aggregation.replayed import replay_distance

        found = replay_distance(self._coded(lease, sent, codec), self._coded(lease, again, codec))
        self.distances.setdefault(kind, []).append(found.largest)

    def _coded(self, lease: Lease, sent: Blocks, name: str) -> Blocks:
        from moe.layout import submission_specs
        from protocol.codecs import codec_named
        from protocol.submission import decode_submission, encode_submission

        codec, specs = codec_named(name), submission_specs(self._layout, lease.columns)
        return decode_submission(encode_submission(sent, codec), specs, codec, lease.blocks)


def main() -> None:
    """Compute, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leases", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, metavar="N", help="a chain of its own, of leases from N on")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop before the lease that would begin after them")
    parser.add_argument("--json", type=Path, metavar="FILE", default=None, help="write a file of results")
    args = parser.parse_args()
    end_s = time.monotonic() + 60.0 * args.minutes
    with tempfile.TemporaryDirectory() as scratch:
        replays = Replays(prepared(Path(scratch)))
        for number in range(args.first, args.first + args.leases):
            if time.monotonic() > end_s:
                break
            replays.lease(number)
    rows = [row_of(kind, distances) for kind, distances in replays.distances.items()]
    print_rows([{key: cell for key, cell in row.items() if key != "distances"} for row in rows])
    if args.json is not None:
        first = f" --first {args.first}" if args.first else ""
        command = f"python -m benchmarks.replays --leases {len(replays.distances[HONEST])}{first}"
        result = {"command": command, "machine": machine(), "date": str(datetime.date.today())}
        written = json.dumps({**result, "columns": _COLUMNS, "rows": rows}, indent=1)
        args.json.write_text(written + "\n", encoding="utf-8")


def row_of(kind: str, distances: Sequence[float]) -> dict[str, Any]:
    """What is told of all distances of one kind, and the distances."""
    most = AuditConfig().tolerance
    return {
        "kind": kind,
        "leases": len(distances),
        "smallest": min(distances),
        "median": statistics.median(distances),
        "largest": max(distances),
        "above": sum(one > most for one in distances) / len(distances),
        "distances": [float(f"{one:.3g}") for one in distances],
    }


if __name__ == "__main__":
    main()

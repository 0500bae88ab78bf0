"""The worker's trainer against a bare PyTorch loop on the same shard, paired in one run.

    python -m benchmarks.worker [--quick] [--json FILE]

Both train the same lease on the same `ShardModel` from the same weights; they take turns, and who goes first
alternates, so that a busy machine slows both. `loop_ratio` compares the inner loops (clipping, warm-up, stop checks and
progress reports on our side); `lease_ratio` also counts what a lease adds around them: loading blocks from disk,
subtracting, encoding, storing durably. Ratios are medians over pairs; 1.0 is the bare loop.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig

from benchmarks import report
from benchmarks.gpu_where import where_we_are
from moe.full import initial_blocks
from moe.layout import Layout, block_tensor_specs, layout
from moe.presets import preset
from moe.shard import ShardModel, build_shard
from protocol.codecs import BF16, FP32
from protocol.ids import BlockId, Digest, LeaseId, RoundNumber, Version, digest_of
from protocol.lease import DataRange, Lease
from protocol.recipe import Recipe
from protocol.submission import encode_submission
from protocol.tensors import decode_tensors, encode_tensors
from worker.blocks import BlockCache
from worker.outbox import Outbox, Submission
from worker.train.trainer import TrainMetrics, pseudo_gradient_of, train_shard


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCase:
    """One thing to measure."""

    residency: str
    columns: int
    inner_steps: int
    batch_sequences: int
    sequence_length: int = 128
    optimizer: str = "adamw"
    """The worker's. The bare loop's is AdamW always: what Muon costs is part of a row's ratio."""


QUICK = (
    WorkerCase(residency="frozen", columns=8, inner_steps=10, batch_sequences=8),
    WorkerCase(residency="frozen", columns=4, inner_steps=10, batch_sequences=8),
)
CASES = (
    WorkerCase(residency="frozen", columns=8, inner_steps=10, batch_sequences=16),
    WorkerCase(residency="frozen", columns=8, inner_steps=30, batch_sequences=16),
    WorkerCase(residency="frozen", columns=4, inner_steps=10, batch_sequences=16),
    WorkerCase(residency="frozen", columns=4, inner_steps=30, batch_sequences=16),
    WorkerCase(residency="absent", columns=4, inner_steps=30, batch_sequences=16),
    WorkerCase(residency="frozen", columns=8, inner_steps=10, batch_sequences=16, optimizer="muon"),
    WorkerCase(residency="frozen", columns=4, inner_steps=10, batch_sequences=16, optimizer="muon"),
)


def main() -> None:
    """Print the rows, and write them where asked."""
    options = report.parse_args(__doc__ or "")
    print(f"{report.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    cases, pairs = (QUICK, 10) if options.quick else (CASES, 5)
    rows = [measure(case, pairs) for case in cases]
    report.print_rows(rows)
    if options.json is not None:
        report.write_json(options.json, rows)


def measure(case: WorkerCase, pairs: int) -> report.Row:
    """One row: tokens a second of both, and their ratios."""
    bench = Bench(case)
    bare_s, loop_s, lease_s = [], [], []
    bench.bare()  # warms caches and allocators up, for both
    for pair in range(pairs):
        for turn in (0, 1) if pair % 2 else (1, 0):
            if turn == 0:
                bare_s.append(bench.bare())
            else:
                whole_s, inner_s = bench.worker()
                lease_s.append(whole_s)
                loop_s.append(inner_s)
    tokens = case.inner_steps * case.batch_sequences * case.sequence_length
    return {
        "device": bench.device,
        "residency": case.residency,
        "columns": f"{case.columns}/{bench.layout.columns}",
        "optimizer": case.optimizer,
        "steps": case.inner_steps,
        "batch": case.batch_sequences,
        "bare_tokens_per_s": tokens / statistics.median(bare_s),
        "worker_tokens_per_s": tokens / statistics.median(loop_s),
        "loop_ratio": statistics.median(bare / ours for bare, ours in zip(bare_s, loop_s, strict=True)),
        "lease_ratio": statistics.median(bare / ours for bare, ours in zip(bare_s, lease_s, strict=True)),
    }


class Bench:
    """One case's model, lease and data."""

    def __init__(self, case: WorkerCase, config: PreTrainedConfig | None = None) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = where_we_are(self.device).compute
        self.case = case
        config = config or preset("tiny")
        self.layout: Layout = layout(config, case.residency)
        self.lease = _lease(case)
        self.tokens_NL: NDArray[np.int64] = np.random.default_rng(0).integers(
            0, 256, (self.lease.data.count, case.sequence_length + 1)
        )
        blocks = initial_blocks(config, self.layout, seed=0)
        self._folder = tempfile.TemporaryDirectory(prefix="barnraise-benchmark-")
        self._cache = BlockCache(Path(self._folder.name) / "blocks")
        self._outbox = Outbox(Path(self._folder.name) / "outbox")
        self._digests = {block: self._store(encode_tensors(tensors, FP32)) for block, tensors in blocks.items()}
        self.blocks: Mapping[BlockId, Mapping[str, Tensor]] = blocks
        self.shard: ShardModel = build_shard(
            self.layout, self.lease.columns, blocks, device=self.device, compute_dtype=dtype
        )

    def _store(self, payload: bytes) -> Digest:
        digest = digest_of(payload)
        self._cache.partial(digest).write_bytes(payload)
        self._cache.adopt(digest)
        return digest

    def bare(self) -> float:
        """Seconds of the loop that one would write by hand."""
        self.shard.load(self.blocks)
        lease, batch = self.lease, self.case.batch_sequences
        started_s = self.now_s()
        recipe = lease.recipe
        groups = self.shard.parameter_groups(recipe.learning_rate, recipe.router_lr_scale, recipe.weight_decay)
        parameters = [parameter for group in groups for parameter in group["params"]]
        optimizer = torch.optim.AdamW(
            groups, betas=(recipe.adam_beta1, recipe.adam_beta2), eps=recipe.adam_eps, fused=True
        )
        for step in range(lease.inner_steps):
            tokens_BL = torch.from_numpy(self.tokens_NL[step * batch : (step + 1) * batch]).to(self.device)
            self.shard.loss(tokens_BL).total.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return self.now_s() - started_s

    def worker(self) -> tuple[float, float]:
        """Seconds of a whole lease, and of its inner loop."""
        started_s = self.now_s()
        start = {
            block: decode_tensors(self._cache.path(digest), block_tensor_specs(self.layout, block), FP32)
            for block, digest in self._digests.items()
        }
        self.shard.load(start)
        inner_s = -self.now_s()
        metrics = train_shard(self.shard, self.lease, self.tokens_NL, device=self.device)
        inner_s += self.now_s()
        gradient = pseudo_gradient_of(start, self.shard)
        payload = encode_submission(gradient, BF16)
        self._outbox.save(_submission(self.lease, payload, metrics), payload)
        return self.now_s() - started_s, inner_s

    def now_s(self) -> float:
        """When the device has done all that it was told."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _lease(case: WorkerCase) -> Lease:
    return Lease(
        lease_id=LeaseId("benchmark"),
        round=RoundNumber(1),
        base_version=Version(0),
        columns=tuple(range(case.columns)),
        data=DataRange(seed=0, start=0, count=case.inner_steps * case.batch_sequences),
        seed=0,
        inner_steps=case.inner_steps,
        batch_sequences=case.batch_sequences,
        recipe=Recipe(optimizer=case.optimizer, learning_rate=4e-3, muon_learning_rate=0.02, warmup_steps=3),
    )


def _submission(lease: Lease, payload: bytes, metrics: TrainMetrics) -> Submission:
    return Submission(
        lease_id=lease.lease_id,
        digest=digest_of(payload),
        payload_bytes=len(payload),
        codec=BF16.name,
        inner_steps_done=metrics.inner_steps_done,
        tokens=metrics.tokens,
        train_loss_first=metrics.loss_first,
        train_loss_last=metrics.loss_last,
        train_s=metrics.train_s,
        micro_batch=metrics.micro_batch,
    )


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()

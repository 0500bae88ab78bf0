"""Error feedback keeps the books: what was decoded and what the worker has left are all that was computed."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator.engine.lease import GrantedLease
from moe.layout import Layout, submission_specs
from protocol.codecs import BF16, CODECS, codec_named
from protocol.ids import BlockId, Digest, LeaseId, digest_of
from protocol.lease import Lease
from protocol.specs import submission_name
from protocol.submission import decode_submission
from tests.coordinator.engine.conftest import Swarm, small_config
from tests.protocol.test_made_up_codec import EightBits
from worker.outbox import Outbox, Submission
from worker.train.residuals import MOST_RESIDUAL, Coded, coded

Gradient = dict[BlockId, dict[str, torch.Tensor]]
Flat = dict[str, torch.Tensor]
OUTCOMES = ("counts", "counts", "counts", "refused", "handed back", "refused at the commit")


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODECS, "eight_bits", EightBits())


def gradient_of(layout: Layout, lease: Lease, seed: int, scale: float = 1.0) -> Gradient:
    generator = torch.Generator().manual_seed(seed)
    found: Gradient = {block: {} for block in lease.blocks}
    for spec in submission_specs(layout, lease.columns):
        block, _, name = spec.name.partition("/")
        found[BlockId(block)][name] = scale * torch.randn(spec.shape, generator=generator)
    return found


def flat(blocks: Any) -> Flat:
    return {submission_name(block, name): one for block, tensors in blocks.items() for name, one in tensors.items()}


def saved(outbox: Outbox, lease: Lease, made: Coded) -> Submission:
    submission = Submission(
        lease_id=lease.lease_id, digest=digest_of(made.payload), payload_bytes=len(made.payload), codec=lease.codec,
        residuals_in=made.began, residuals_out=made.left, residuals_back=made.back,
        inner_steps_done=lease.inner_steps, tokens=1, train_loss_first=2.0, train_loss_last=1.0, train_s=1.0,
        micro_batch=1,
    )  # fmt: skip
    outbox.save(submission, made.payload, made.residuals)
    return submission


class Volunteer:
    """The engine, one worker's disk and the real encoding; what a submission comes to is the test's to say."""

    def __init__(self, layout: Layout, codec: str, folder: Path) -> None:
        self.layout, self.folder = layout, folder
        config = small_config(max_rounds=1000, replicas=1, quorum=1, quarantine_after=10_000, codec=codec)
        self.swarm = Swarm(config)
        self.swarm.join("a")
        self.outbox = Outbox(folder)
        self.computed: Flat = {}
        self.decoded: Flat = {}

    def lease(self, but: LeaseId | None = None) -> GrantedLease:
        while self.swarm.lease("a").lease_id == but:
            self.swarm.after(60.0).do_slow_work()
            self.swarm.ask("a")
        return self.swarm.lease("a")

    def go(self, seed: int, outcome: str) -> GrantedLease:
        s, lease = self.swarm, self.swarm.lease("a")
        gradient = gradient_of(self.layout, lease, seed)
        made = coded(lease, gradient, self.outbox.residual)
        submission = saved(self.outbox, lease, made)
        add(self.computed, flat(gradient))
        steps = 1 if outcome == "refused at the commit" else lease.inner_steps
        s.commit(
            "a", lease, digest=submission.digest, residuals_in=made.began, residuals_out=made.left,
            residuals_back=made.back, inner_steps_done=steps,
        )  # fmt: skip
        if outcome == "handed back":
            s.give_back("a")
        if outcome in ("counts", "refused"):
            s.upload("a", lease, submission.digest)
            s.measured(lease.lease_id, malformed="it is not" if outcome == "refused" else "")
        if outcome == "counts":
            specs, codec = submission_specs(self.layout, lease.columns), codec_named(lease.codec)
            add(self.decoded, flat(decode_submission(made.payload, specs, codec, lease.blocks)))
        return self.lease(but=lease.lease_id)

    def residual(self) -> Flat:
        """As the next lease names it and the disk has it."""
        lease = self.swarm.lease("a")
        left: Gradient = {}
        for block, digest in zip(lease.blocks, lease.residuals, strict=True):
            content = self.outbox.residual(digest)
            assert content is not None
            from safetensors.torch import load

            left[block] = load(content)
        return flat(left)


def add(total: Flat, more: Flat) -> None:
    for name, tensor in more.items():
        total[name] = total.get(name, torch.zeros(())) + tensor.double()


STATEFUL = sorted({"eight_bits", *(name for name, codec in CODECS.items() if codec.has_state)})


@pytest.mark.parametrize("codec", STATEFUL)
def test_what_was_decoded_and_what_is_left_are_all_that_was_computed(
    frozen_layout: Layout, tmp_path: Path, codec: str
) -> None:
    """Over many rounds, whatever becomes of submissions, over restarts of the worker; to the rounding of fp32."""
    if codec_named(codec).state_decay != 1.0:
        pytest.skip("it forgets by design")
    volunteer, draw = Volunteer(frozen_layout, codec, tmp_path), random.Random(codec)
    seen: Counter[str] = Counter()
    lost = 0
    for number in range(30):
        # more in a row and what they leave is cut to `MOST_RESIDUAL`
        outcome = draw.choice(OUTCOMES) if lost < 2 else "counts"
        lost = 0 if outcome == "counts" else lost + 1
        seen[outcome] += 1
        volunteer.go(number, outcome)
        if draw.random() < 0.3:
            volunteer.outbox = Outbox(tmp_path)
    assert set(seen) == set(OUTCOMES)
    assert volunteer.swarm.round > 10
    left = volunteer.residual()
    assert any(bool(tensor.any()) for tensor in left.values())
    for name, computed in volunteer.computed.items():
        found = volunteer.decoded[name] + left[name].double()
        assert torch.allclose(found, computed, rtol=0.0, atol=1e-4), name


def lease_of(codec: str, *residuals: str) -> Lease:
    from tests.worker.leases import changed_lease, lease_message, read_lease

    lease = read_lease(lease_message())
    return changed_lease(lease, codec=codec, residuals=tuple(map(Digest, residuals)))


def test_a_codec_that_keeps_nothing_says_nothing(frozen_layout: Layout) -> None:
    lease = lease_of(BF16.name, "a" * 64, "", "")
    made = coded(lease, gradient_of(frozen_layout, lease, 0), lambda _: pytest.fail("asked for a residual"))
    assert (made.began, made.left, made.back, made.residuals) == ((), (), (), None)


def test_a_residual_that_is_not_here_counts_as_none(frozen_layout: Layout, tmp_path: Path) -> None:
    outbox, first = Outbox(tmp_path), lease_of("eight_bits")
    gradient = gradient_of(frozen_layout, first, 0)
    made = coded(first, gradient, outbox.residual)
    saved(outbox, first, made)
    assert made.began == ("", "", "")
    trunk, *columns = made.left
    (path,) = tmp_path.glob(f"{trunk}*")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    again = coded(lease_of("eight_bits", trunk, columns[0], "f" * 64), gradient, outbox.residual)
    assert again.began == ("", columns[0], ""), "damaged, whole, and never seen"
    assert coded(lease_of("eight_bits", "", "", ""), gradient, outbox.residual).payload == made.payload


def test_residuals_of_the_last_two_submissions_stay(frozen_layout: Layout, tmp_path: Path) -> None:
    volunteer = Volunteer(frozen_layout, "eight_bits", tmp_path)
    for number in range(4):
        volunteer.go(number, "counts")
    blocks = len(volunteer.swarm.lease("a").blocks)
    kept = 5 * blocks  # what the last left is what the one before it began with, but for what a refusal gives back
    assert len(list(tmp_path.glob("*.residual"))) == kept
    for submission in volunteer.outbox.all():
        volunteer.outbox.drop(submission.lease_id)
    assert len(list(tmp_path.glob("*.residual"))) == kept, "they outlive the submission"


def test_refusals_do_not_add_up_without_end(frozen_layout: Layout, tmp_path: Path) -> None:
    volunteer = Volunteer(frozen_layout, "eight_bits", tmp_path)
    for _ in range(20):
        volunteer.go(7, "refused")  # the same each time: norms add up
    one = gradient_of(frozen_layout, volunteer.swarm.lease("a"), 7)
    norms = [torch.cat([tensor.reshape(-1) for tensor in block.values()]).norm() for block in one.values()]
    left = volunteer.residual()
    whole = torch.cat([tensor.reshape(-1) for tensor in left.values()]).norm()
    assert 0.9 * MOST_RESIDUAL < float(whole / torch.stack(norms).norm()) < 1.001 * MOST_RESIDUAL


def test_a_residual_of_higher_rates_is_half_as_long_after_a_refusal(frozen_layout: Layout, tmp_path: Path) -> None:
    """Otherwise whoever is refused for its length would be refused for it for ever."""
    outbox, lease = Outbox(tmp_path), lease_of("ternary")
    made = coded(lease, gradient_of(frozen_layout, lease, 0, scale=100.0), outbox.residual)
    saved(outbox, lease, made)
    then = lease_of("ternary", *made.left)
    again = coded(then, gradient_of(frozen_layout, lease, 1), outbox.residual)
    saved(outbox, then, again)
    norms = [[_norm_of(outbox, digest) for digest in digests] for digests in (made.left, again.back)]
    for long, back in zip(*norms, strict=True):
        assert long > 20 * MOST_RESIDUAL
        assert 0.49 < back / long < 0.501


def _norm_of(outbox: Outbox, digest: Digest) -> float:
    from safetensors.torch import load

    content = outbox.residual(digest)
    assert content is not None
    return float(torch.cat([tensor.reshape(-1) for tensor in load(content).values()]).norm())


def test_what_is_not_finite_does_not_outlive_its_submission(frozen_layout: Layout, tmp_path: Path) -> None:
    lease = lease_of("eight_bits")
    gradient = gradient_of(frozen_layout, lease, 0)
    next(iter(gradient[lease.blocks[1]].values())).reshape(-1)[0] = float("nan")
    made = coded(lease, gradient, lambda _: None)
    outbox = Outbox(tmp_path)
    saved(outbox, lease, made)
    again = coded(lease_of("eight_bits", *made.left), gradient_of(frozen_layout, lease, 1), outbox.residual)
    specs = submission_specs(frozen_layout, lease.columns)
    decoded = decode_submission(again.payload, specs, EightBits(), lease.blocks)
    assert all(bool(tensor.isfinite().all()) for tensor in flat(decoded).values())

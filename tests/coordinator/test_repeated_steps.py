"""An outer step that is asked for twice: answered with what is there where it is the same command, else taken again."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest

from coordinator.engine.commands import BlockClip
from coordinator.engine.records import command_digest, command_from_json, command_to_json
from coordinator.run.folder import RunFolder
from protocol.ids import TRUNK, Version
from tests.coordinator.work_bench import Bench, attempt, constant, contribution, three


@pytest.fixture
def bench(run: RunFolder) -> Bench:
    return Bench(run)


def test_a_step_of_the_release_before_is_taken_again_and_comes_to_the_same_blocks(bench: Bench) -> None:
    """It was durable and not yet journalled when that release ended, and named its reason in another way."""
    sent = (contribution(1, bench.submit((0,), constant(1.0)), (0,)),)
    first = bench.aggregate(sent, outer_momentum=0.5)
    entry = bench.run.root / "versions" / "00000001.json"
    named = json.loads(entry.read_bytes())
    entry.write_text(json.dumps({**named, "cause": hashlib.sha256(b"AggregateRound(...)").hexdigest()}))
    again, before = Bench(bench.run), bench.versions.manifest(first.manifest)  # another process
    second = again.aggregate(sent, outer_momentum=0.5)
    after = again.versions.manifest(second.manifest)
    assert (after.blocks, after.momenta, after.tokens_trained) == (before.blocks, before.momenta, before.tokens_trained)
    assert second.update_norm_l2 == first.update_norm_l2
    assert again.versions.manifest_digest(1) == second.manifest
    assert json.loads(entry.read_bytes())["cause"] == named["cause"]
    third = again.aggregate(
        sent, parent_version=Version(1), parent_manifest=second.manifest, version=Version(2), outer_momentum=0.5
    )
    assert again.versions.manifest(third.manifest).parent_version == 1


def test_a_commands_digest_is_that_of_all_it_says(bench: Bench) -> None:
    command = attempt(bench, three(bench), clips=(BlockClip(block=TRUNK, max_norm_l2=float("inf")),))
    assert command_digest(command_from_json(command_to_json(command))) == command_digest(command)
    changed = [
        dataclasses.replace(command, seed=8),
        dataclasses.replace(command, cautious=True),
        dataclasses.replace(command, contributions=command.contributions[::-1]),
        dataclasses.replace(
            command,
            contributions=(dataclasses.replace(command.contributions[0], sequences=4), *command.contributions[1:]),
        ),
    ]
    assert len({command_digest(one) for one in (command, *changed)}) == 5


def test_a_commands_digest_does_not_depend_on_the_order_in_which_its_fields_are_declared(bench: Bench) -> None:
    command = attempt(bench, three(bench))
    plain = json.loads(command_to_json(command))
    text = json.dumps(dict(sorted(plain.items())), separators=(",", ":"), sort_keys=True)
    assert command_digest(command) == hashlib.sha256(text.encode()).hexdigest()

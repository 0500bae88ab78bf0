"""Whole scenarios as text: what happens above the line, what the engine does about it below.

`UPDATE_GOLDEN=1 pytest tests/coordinator/engine/test_traces.py` writes what comes now:
read the difference before keeping it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from coordinator.engine import commands as cmd
from coordinator.engine.commands import Command
from coordinator.engine.config import EngineConfig, InnerRecipe, ScreeningConfig
from coordinator.engine.engine import Engine
from protocol.errors import IllegalEvent

TRACES = sorted((Path(__file__).parent / "traces").glob("*.txt"))
LINE = "----"
NESTED = {"inner": InnerRecipe, "screening": ScreeningConfig}


def words_of(command: Command) -> str:
    """One command, as a person would say it."""
    match command:
        case cmd.GrantLease(lease=lease):
            columns = ",".join(map(str, lease.columns))
            data = f"data {lease.data.start}+{lease.data.count}"
            spare = " spare" if lease.spare else ""
            until = f"deadline {lease.deadline_s:g}{spare}"
            what = f"columns {columns} steps {lease.inner_steps} {data} {until}"
            return f"GrantLease {lease.lease_id} {lease.worker} {what}"
        case cmd.CancelLease(worker=worker, lease_id=lease_id):
            return f"CancelLease {lease_id} {worker}: {command.reason}"
        case cmd.AnnounceVerdict(worker=worker, lease_id=lease_id, verdict=verdict):
            return f"AnnounceVerdict {lease_id} {worker} {'yes' if verdict.accepted else 'no'}: {verdict.reason}"
        case cmd.AggregateRound(contributions=contributions):
            used = (f"{c.lease_id}*{c.weight:g}{'' if c.include_trunk else '-trunk'}" for c in contributions)
            return f"AggregateRound v{command.parent_version}->v{command.version} {' '.join(used)}"
        case cmd.EndRun():
            return f"EndRun: {command.reason}"
        case cmd.DropPayload(digest=digest):
            return f"DropPayload {digest[:8]}"
        case cmd.SlowCommand(command_id=command_id):
            return f"{type(command).__name__} {command_id}"
    return repr(command)


def value_of(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text, text.replace("_", " "))


def config_of(pairs: dict[str, Any]) -> dict[str, Any]:
    """`inner.inner_steps=4` reaches into the tables."""
    changes = {key: value for key, value in pairs.items() if "." not in key}
    for name, kind in NESTED.items():
        inner = {key.split(".")[1]: value for key, value in pairs.items() if key.startswith(f"{name}.")}
        if inner:
            defaults = {"inner_steps": 8, "batch_sequences": 4} if kind is InnerRecipe else {}
            changes[name] = kind(**{**defaults, **inner})
    known = {field.name for field in fields(EngineConfig)}
    assert set(changes) <= known, set(changes) - known
    return changes


class Player:
    """Plays one trace."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make
        self.swarm: Any = None

    def block(self, script: list[str]) -> list[str]:
        lines: list[str] = []
        for line in script:
            before = len(self.swarm.log) if self.swarm else 0
            extra = self.line(line)
            lines += [words_of(command) for command in self.swarm.log[before:]] + extra
        state = self.swarm.engine.state
        return [*lines, f"= t {self.swarm.now_s:g} round {state.round.round} {state.phase} v{state.version}"]

    def line(self, line: str) -> list[str]:
        verb, *rest = line.split()
        words = [word for word in rest if "=" not in word]
        pairs = {key: value_of(value) for key, value in (word.split("=", 1) for word in rest if "=" in word)}
        if verb == "config":
            self.swarm = self.make(**config_of(pairs))
            return []
        return self.act(verb, words, pairs)

    def act(self, verb: str, words: list[str], pairs: dict[str, Any]) -> list[str]:
        swarm = self.swarm
        if verb == "explain":
            return [f"{wait.subject}: {wait.reason}" for wait in swarm.engine.explain(swarm.now_s)]
        if verb == "why":
            return [f"{word}: {swarm.engine.wait_reason(word)}" for word in words]
        if verb == "restart":
            before = swarm.engine.snapshot()
            swarm.engine = swarm.replayed()
            assert swarm.engine.snapshot() == before
            return []
        try:
            self.drive(verb, words, pairs)
        except IllegalEvent as error:
            return [f"illegal: {error}"]
        return []

    def drive(self, verb: str, words: list[str], pairs: dict[str, Any]) -> None:
        swarm = self.swarm
        if verb in {"at", "after"}:
            getattr(swarm, verb)(float(words[0]))
        elif verb in {"aggregated", "validated", "exported", "tick", "stop", "do_slow_work"}:
            getattr(swarm, verb)(**pairs)
        elif verb in {"measured", "failed"}:
            getattr(swarm, verb)(words[0], **pairs)
        elif verb in {"commit", "upload"}:
            lease = swarm.record(pairs.pop("lease")).lease if "lease" in pairs else None
            getattr(swarm, verb)(words[0], lease, **pairs)
        elif verb in {"join", "enrol", "ask", "beat", "submit"}:
            getattr(swarm, verb)(*words, **pairs)
        else:
            assert verb in {"silent", "give_back"}, f"unknown verb {verb}"
            for word in words:
                getattr(swarm, verb)(word, **pairs)


def played(text: str, make: Callable[..., Any]) -> str:
    """`text` with what comes now below each line."""
    player, out = Player(make), []
    for block in text.strip("\n").split("\n\n"):
        lines = block.split("\n")
        script = lines[: lines.index(LINE)] if LINE in lines else lines
        acts = [line for line in script if line and not line.startswith("#")]
        out.append("\n".join([*script, *([LINE, *player.block(acts)] if acts else [])]))
    assert isinstance(player.swarm.engine, Engine)
    return "\n\n".join(out) + "\n"


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_trace(path, swarm):
    text = path.read_text()
    now = played(text, swarm)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(now)
        return
    assert now == text


def test_there_are_enough_traces():
    assert len(TRACES) >= 6

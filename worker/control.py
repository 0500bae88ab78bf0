"""What a volunteer's commands do to a worker that runs: one request from the local socket, one answer.

Decides what each verb means: `pause` and `resume` change what the volunteer says (it outlives the process), `finish`
lets the present lease be the last, `leave` hands it back now. Every answer is how the worker stands afterwards. Who may
ask, the socket decides (protocol/local_socket.py). Touches nothing but the agent and the house.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from protocol.errors import MalformedMessage
from worker.agent import Agent
from worker.energy import EnergyMeter
from worker.joining import Joining
from worker.rules.house import House
from worker.standing import WorkerStanding, sentence
from worker.words import say

VERBS: Final = ("status", "pause", "resume", "finish", "leave")


def control_path(folder: Path) -> Path:
    """Where the worker of a run's folder listens."""
    return folder / "control" / "socket"


class Control:
    """One worker's answers."""

    def __init__(
        self,
        agent: Agent,
        joining: Joining,
        house: House,
        standing: WorkerStanding,
        meter: EnergyMeter | None = None,
    ) -> None:
        self._agent, self._joining, self._house, self._standing = agent, joining, house, standing
        self._meter = meter
        self._started_s = time.time()
        self._is_leaving = False

    async def handle(self, request: dict[str, Any], _caller: object = None) -> dict[str, Any]:
        """MalformedMessage where it is no request of ours."""
        match request.get("verb"):
            case "status":
                pass
            case "pause":
                self._house.pause(_until(request))
                await self._agent.look_at_policy()
            case "resume":
                self._house.resume()
                await self._agent.look_at_policy()
            case "finish":
                self._house.policy.is_finishing = True
                self._agent.finish()
                await self._agent.look_at_policy()
            case "leave":
                self._is_leaving = True
                self._agent.leave(say("leave.asked"))
            case verb:
                raise MalformedMessage(f"a worker knows {', '.join(VERBS)}, not {str(verb)[:40]!r}")
        return self.status()

    def status(self) -> dict[str, Any]:
        """Everything that `barnraise worker status --json` shows of this worker."""
        agent, standing, permission = self._agent, self._standing, self._agent.permission
        today, month = self._house.ledger.used(datetime.now().date())
        return {
            "says": self.sentence(),
            "state": agent.state.value,
            "allowed": permission.allowed,
            "why": permission.reason,
            "until_s": permission.until_s,
            "share": permission.share,
            "slowed": permission.slowed,
            "objections": [
                {"rule": each.rule, "reason": each.reason, "until_s": each.until_s}
                for each in self._house.policy.objections
            ],
            "rules_trouble": self._house.trouble,
            "coordinator": self._joining.address,
            **self._membership(),
            "lease": self._lease(),
            "sends": agent.is_sending,
            "accepted": standing.accepted,
            "rejected": standing.rejected,
            "verdicts": list(standing.verdicts),
            "today_bytes": today,
            "month_bytes": month,
            "machine": standing.machine,
            "credit": standing.credit,
            **self._energy(),
            "pid": os.getpid(),
            "started_s": round(self._started_s, 1),
        }

    def sentence(self) -> str:
        """What the worker does, why, and until when."""
        if self._is_leaving:
            return say("doing.leaving.holding" if self._agent.held_lease else "doing.leaving")
        return sentence(
            self._agent.state,
            self._agent.permission,
            self._standing,
            address=self._joining.address,
            sends=self._agent.is_sending,
            holds=self._agent.held_lease is not None,
            now_s=time.monotonic(),
        )

    def _membership(self) -> dict[str, Any]:
        if not self._joining.is_enrolled:
            return {"worker": None, "run_id": None, "run_name": ""}
        enrolment = self._joining.enrolment
        return {"worker": enrolment.worker_id, "run_id": enrolment.run_id, "run_name": self._joining.run_name}

    def _energy(self) -> dict[str, Any]:
        if self._meter is None:
            return {"gauge": None, "energy": None}
        return {"gauge": asdict(self._meter.gauge), "energy": self._meter.notes.total.kwh}

    def _lease(self) -> dict[str, Any] | None:
        present = self._standing.present
        if present is None or self._agent.held_lease != present.lease:
            return None
        left_s = present.left_s(time.monotonic())
        return {
            "lease": present.lease,
            "round": present.round,
            "step": present.step,
            "steps": present.steps,
            "loss": present.loss,
            "tokens_per_s": round(present.tokens_per_s, 1),
            "left_s": None if left_s is None else round(left_s, 1),
        }


def _until(request: dict[str, Any]) -> float | None:
    until_s = request.get("until_s")
    if until_s is None:
        return None
    if isinstance(until_s, bool) or not isinstance(until_s, int | float) or not math.isfinite(until_s):
        raise MalformedMessage("until_s is a number of seconds since 1970")
    return float(until_s)

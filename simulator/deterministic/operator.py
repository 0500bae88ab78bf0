"""The operator of a simulated run: holds and stops it, changes settings, bans, pardons and rolls back, as was drawn.

Decides nothing else, but for this: once all is calm, whoever is banned is let back in now and then, since a run of
which everybody is shut out does not end. What a coordinator that is down is told is lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

from coordinator.engine.commands import Command
from coordinator.run.holding import order_of
from protocol.errors import BarnraiseError
from protocol.ids import WorkerId, worker_id_of
from simulator.deterministic.distrust import Order, OrderPlan, said
from simulator.deterministic.loop import VirtualLoop
from simulator.deterministic.node import CoordinatorNode
from simulator.deterministic.scenario import START_S, Scenario, SettingPlan, key_of

RELENTS_EVERY_S = 600.0


class Operator:
    """One run's."""

    def __init__(self, loop: VirtualLoop, scenario: Scenario, node: CoordinatorNode) -> None:
        self._loop, self._scenario, self._node = loop, scenario, node
        self._waiting: list[OrderPlan] = []

    def begin(self) -> None:
        """Say everything at its time."""
        scenario = self._scenario
        if scenario.stop_after_s is not None:
            self._loop.call_at(START_S + scenario.stop_after_s, self._say, lambda: self._node.stop_run("enough"))
        for plan in scenario.changes:
            self._loop.call_at(START_S + plan.after_s, self._change, plan)
        for word in scenario.words:
            self._loop.call_at(START_S + word.after_s, self._speak, word)
        for after_s, verb in scenario.holds:
            self._loop.call_at(START_S + after_s, self._hold, verb)
        if scenario.holds:
            self._loop.call_at(scenario.calm_s, self._let_go)
        self._node.on_command = self._look
        if scenario.config.audits.budget > 0 or scenario.words:
            self._loop.call_at(scenario.calm_s, self._relent)

    def _change(self, plan: SettingPlan) -> None:
        self._say(lambda: self._node.change_setting(plan.key, plan.value))

    def _speak(self, word: OrderPlan) -> None:
        if word.during:
            self._waiting.append(word)
        else:
            self._say_of(word)

    def _look(self, command: Command) -> None:
        """Some words are meant for the moment when something is being worked on."""
        for word in [word for word in self._waiting if word.during == type(command).__name__]:
            self._waiting.remove(word)
            self._loop.call_later(0.0, self._say_of, word)

    def _say_of(self, word: OrderPlan) -> None:
        self._judge(word.order, worker_id_of(key_of(self._scenario.seed, word.volunteer)))

    def _judge(self, order: Order, worker: WorkerId) -> None:
        self._say(lambda: self._node.order(lambda _, at_s: said(order, worker, at_s)))

    def _hold(self, verb: str) -> None:
        self._say(lambda: self._node.order(lambda engine, at_s: order_of(engine.state, verb, "", at_s, "")))

    def _let_go(self) -> None:
        """A word that found nobody there is said again."""
        self._loop.call_later(RELENTS_EVERY_S, self._let_go)
        engine = self._node.engine
        if engine is not None and engine.state.hold is not None:
            self._hold("resume")

    def _relent(self) -> None:
        self._loop.call_later(RELENTS_EVERY_S, self._relent)
        engine = self._node.engine
        banned = [] if engine is None else [one.worker for one in engine.state.workers.values() if one.ban is not None]
        for worker in banned:
            self._judge(Order.UNBAN, worker)

    def _say(self, what: Callable[[], Awaitable[None]]) -> None:
        if self._node.is_up:
            self._loop.create_task(quietly(what), context=self._node.context)


async def quietly(work: Callable[[], Awaitable[None]]) -> None:
    """Whatever is refused, or finds nobody there, is given up."""
    with contextlib.suppress(BarnraiseError):
        await work()

"""The run's page while it is served: its pictures are made in the event loop, and shown by a thread of its own.

Decides the order: the page is there before the first picture, and gone before the run is put away. Always: a page that
cannot be made never keeps workers from being served; only one that cannot listen, where somebody named the place, does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from importlib import metadata
from math import prod
from typing import Any

import structlog
from cryptography import x509

from coordinator.edge.desk import Desk
from coordinator.edge.operators import Orderer
from coordinator.edge.pages import StatusReader
from coordinator.edge.served import RunContext
from coordinator.edge.viewing import RunViews
from coordinator.page.access import Access, Somebody
from coordinator.page.address import PageAddress
from coordinator.page.operator import OperatorDoor
from coordinator.page.server import PageServer
from coordinator.page.view import RunCard
from coordinator.run.folder import RunFolder
from coordinator.run.password import is_password, password_mark
from coordinator.store.operators import Role
from protocol.errors import Unavailable
from protocol.hosts import address_text, canonical_host, split_port
from protocol.local_socket import ASK_S

_log = structlog.get_logger("coordinator")


class Showing:
    """One served run's page. `start` once, `stop` once."""

    def __init__(
        self,
        address: PageAddress,
        folder: RunFolder,
        run: RunContext,
        status: StatusReader,
        access: Access,
        desk: Desk,
    ) -> None:
        self._folder, self._run, self._status, self._access = folder, run, status, access
        self._named = address.names
        names = {*address.names, *(canonical_host(split_port(one)[0]) for one in run.settings.advertised_hosts)}
        door = OperatorDoor(
            access=access,
            call=_in_this_loop(desk),
            password_mark=lambda: password_mark(folder),
            check_password=lambda text: is_password(folder, text),
        )
        self._server = PageServer(replace(address, names=tuple(names)), door)
        self._making: asyncio.Task[None] | None = None

    def login_urls(self, who: Orderer) -> tuple[str, ...]:
        """Addresses that log `who` in, whichever is used first: at this machine, and by the names of `--http-name`."""
        ticket = self._access.ticket(Somebody(name=who.name, may_order=who.may_order))
        bases = [
            self._server.url,
            *(f"https://{address_text(name, 443).removesuffix(':443')}/" for name in self._named),
        ]
        return tuple(f"{base}login?ticket={ticket}" for base in bases)

    async def start(self) -> str:
        """Show the run; answers with the page's address. ConfigError where nobody can listen there."""
        chain, _ = await asyncio.to_thread(self._folder.leaf)
        expires_at_s = x509.load_pem_x509_certificate(chain).not_valid_after_utc.timestamp()
        views = RunViews(
            self._run,
            self._status,
            card_of(self._run),
            certificate_expires_at_s=expires_at_s,
            folder=str(self._folder.root),
        )
        url = await asyncio.to_thread(self._server.start)
        self._making = asyncio.create_task(views.publish_for_ever(self._server.publish))
        _log.info("page_shown", url=url)
        return url

    async def stop(self) -> None:
        """Show nothing any more."""
        if self._making is not None:
            self._making.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._making
        await asyncio.to_thread(self._server.stop)


def _in_this_loop(desk: Desk) -> Callable[[str, Mapping[str, Any], Somebody], Awaitable[Mapping[str, Any]]]:
    """Asks the desk, in the coordinator's loop, for the page's thread."""
    loop = asyncio.get_running_loop()

    async def call(verb: str, message: Mapping[str, Any], who: Somebody) -> Mapping[str, Any]:
        role = Role.OPERATOR if who.may_order else Role.VIEWER
        orderer = Orderer(name=f"{who.name}, on the page", role=role)
        asked = asyncio.run_coroutine_threadsafe(desk.call(verb, dict(message), orderer), loop)
        try:
            async with asyncio.timeout(ASK_S):
                return await asyncio.wrap_future(asked)
        except TimeoutError:
            raise Unavailable(f"the coordinator did not answer within {ASK_S:g} s: look whether it was done") from None

    return call


def card_of(run: RunContext) -> RunCard:
    """What does not change while the run is served, and of the rest what it is now."""
    settings, layout, state = run.settings, run.layout, run.pump.engine.state
    sizes = [(layout.trunk, 1), (layout.column, layout.experts)]
    sources = ", ".join(source.name for source in run.dataset.card.sources[:3])
    return RunCard(
        run_id=run.run_id,
        name=settings.name,
        model=str(layout.config_json["model_type"]),
        parameters=sum(prod(spec.shape) * times for specs, times in sizes for spec in specs),
        columns=layout.columns,
        top_k=layout.top_k,
        residency=settings.residency,
        codec=state.config.codec,
        rule=state.config.rule,
        data=sources or "its own data",
        sequence_length=settings.sequence_length,
        replicas=state.config.replicas,
        quorum=state.config.quorum,
        open_run=state.config.open_run,
        max_rounds=state.config.max_rounds,
        started_at_s=0.0,
        version=state.version,
        exported_version=None,
        release=metadata.version("barnraise"),
    )

"""`--at HOST`: the operator's commands for a run whose coordinator is on another machine.

Decides that a command has a run folder or `--at`, and where an operator's key lies on their own machine: beside it, the
addresses and fingerprints of runs that were once named in full. Touches that folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from coordinator.edge.elsewhere import Elsewhere
    from coordinator.run.folder import RunFolder
    from protocol.joinlink import JoinLink

At = Annotated[
    str,
    typer.Option(
        "--at",
        metavar="HOST",
        help="Instead of RUN: the run whose coordinator is on that machine. With the address that `operator-key add` "
        "prints the first time, from then on with HOST or HOST:PORT.",
    ),
]
KEY_FILE, KNOWN_FILE = "operator.key", "coordinators.json"
_INSTEAD = "(--at)"
"""Stands where RUN would."""


class AtCommand(TyperCommand):
    """A command whose RUN may be left out, where `--at` says which run is meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """With `--at`, what is written are the arguments after RUN."""
        words = args[: args.index("--")] if "--" in args else args
        if any(word == "--at" or word.startswith("--at=") for word in words):
            args = [_INSTEAD, *args]
        return super().parse_args(ctx, args)


def run_meant(folder: Path, at: str) -> RunFolder | Elsewhere:
    """The run that a command is about."""
    from coordinator.run.folder import RunFolder

    if not at:
        return RunFolder.open(folder)
    from coordinator.edge.elsewhere import Elsewhere
    from protocol.identity import PrivateIdentity

    key = operator_home() / KEY_FILE
    if not key.is_file():
        raise ConfigError(
            "this machine has no operator's key: make one with `barnraise coordinator operator-key new`, and have it "
            "let in where the run is"
        )
    return Elsewhere(link=_link_to(at), identity=PrivateIdentity.load(key))


def operator_home() -> Path:
    """Where an operator's key lies."""
    import platformdirs

    return platformdirs.user_config_path("barnraise", appauthor=False) / "operator"


def _link_to(at: str) -> JoinLink:
    from protocol.joinlink import SCHEME, JoinLink, WayBack

    path = operator_home() / KNOWN_FILE
    known = _known(path)
    if "#" in at:
        text = at if at.lower().startswith(SCHEME) else f"{SCHEME}{at}"
        way = WayBack.parse(text)
        if way is None or len(way.fingerprint) != 64:
            raise ConfigError(
                f"{at[:80]!r} is no address of a run; `operator-key add` prints it: {SCHEME}HOST:PORT/#..."
            )
        link = JoinLink(host=way.host, port=way.port, fingerprint=way.fingerprint)
        if known.get(link.address) != link.fingerprint:
            from protocol.private_files import write_private

            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(path, json.dumps({**known, link.address: link.fingerprint}, indent=1).encode())
        return link
    found = [address for address in known if at in (address, address.rpartition(":")[0])]
    if len(found) == 1:
        way = WayBack.parse(found[0])
        if way is not None:
            return JoinLink(host=way.host, port=way.port, fingerprint=known[found[0]])
    if found:
        raise ConfigError(f"several runs are known at {at}: give one of {', '.join(sorted(found))}")
    raise ConfigError(
        f"no run is known at {at[:80]!r}: give the whole address once, as `operator-key add` prints it "
        f"({SCHEME}HOST:PORT/#FINGERPRINT)"
    )


def _known(path: Path) -> dict[str, str]:
    """Address to fingerprint."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return {str(address): str(fingerprint) for address, fingerprint in found.items()} if isinstance(found, dict) else {}

"""What `barnraise worker join LINK` asks somebody at a terminal who has not said it yet: whether to share blocks.

Decides when it asks: with a link that lets this machine in, once for each run, and nobody whose rules share already.
What is answered is a rule (`peers.share`), so that the service and later starts keep to it; Enter shares nothing.
"""

from __future__ import annotations

from pathlib import Path

import typer

from barnraise.cli.questions import can_ask
from protocol.errors import ConfigError
from protocol.joinlink import JoinLink
from worker.rejoin import known_runs
from worker.rules.file import RULES_FILE, read_rules, set_rule

KEY = "peers.share"
_WHAT = (
    "Workers of a run can give one another what they have fetched, which spares the coordinator's line. It opens a port"
    " on\nthis machine, and the run's other workers learn its address; they get nothing but the run's own blocks."
)
_QUESTION = "At most how much a second, as in 1MB (Enter: nothing)"


def ask_to_share(link: str, root: Path) -> None:
    """Put the answer down as a rule in the worker's home `root`, where there is somebody who can be asked."""
    if not can_ask() or not _is_new(link, root):
        return
    typer.echo(_WHAT, err=True)
    while answer := str(typer.prompt(_QUESTION, default="", show_default=False, err=True)).strip():
        try:
            set_rule(root / RULES_FILE, KEY, answer)
        except ConfigError as error:
            typer.echo(str(error), err=True)
            continue
        typer.echo(
            f"Kept as your rule {KEY}: `barnraise worker set {KEY} ''` ends it, at the worker's next start.", err=True
        )
        return


def _is_new(link: str, root: Path) -> bool:
    """Whether `link` lets this machine into a run that it is not in, and nothing is shared so far."""
    try:
        parsed, ruled = JoinLink.parse(link), read_rules(root / RULES_FILE).peers.share
    except ConfigError:
        return False  # whoever joins is told of it
    return (
        parsed.invite is not None
        and not ruled
        and parsed.fingerprint not in {one.fingerprint for one in known_runs(root)}
    )

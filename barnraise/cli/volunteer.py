"""What a volunteer says to their running worker: status, pause, resume, finish, leave, logs.

Decides formats and exit codes; worker/control.py decides what the words mean. They go to every worker of this machine's
home, and a pause counts for the ones that are started later, too.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from barnraise.cli.options import Json
from barnraise.cli.output import print_json, print_pairs, say_error
from barnraise.cli.rules import Home
from protocol.text import human_bytes, printable

if TYPE_CHECKING:
    from worker.identity import KeyOutcome

NOBODY = "no worker is running here; `barnraise worker run` starts one"
GONE_S = 15.0
"""Until a worker that was told to leave has left: it takes two seconds."""
FOLLOW_EVERY_S = 0.3
ANSWER_S = 20.0


def status(home: Home = None, as_json: Json = False) -> int:
    """What the worker on this machine does, why, and until when. Exit code 1: none is running."""
    from worker.rules.file import noted_pause

    root = _root(home)
    found = _asked(root, {"verb": "status"})
    note = noted_pause(root)
    note = None if note is not None and note.is_over(time.time()) else note
    if as_json:
        paused = None if note is None else {"until_s": note.until_s}
        print_json({"workers": found, "paused_by_you": paused})
        return 0 if found else 1
    if not found:
        print(NOBODY + (", and it would be paused: `barnraise worker resume` ends that" if note is not None else ""))
        return 1
    for number, each in enumerate(found):
        if number:
            print()
        _show(each)
    return 0


def pause(
    for_: Annotated[str, typer.Option("--for", metavar="SPAN", help="As in 30min, 2h or 1d.")] = "",
    until: Annotated[str, typer.Option(metavar="TIME", help="As in 18:00 or '2026-12-24 18:00'.")] = "",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Give the machine back for a while: what is in training waits, or goes back where it would come too late.

    Without --for and --until: until `barnraise worker resume`, over restarts, too.
    """
    from protocol.amounts import parse_moment_s, parse_span_s
    from protocol.errors import ConfigError
    from worker.rules.file import PauseNote, note_pause

    if for_ and until:
        raise ConfigError("give --for or --until, not both")
    until_s = None
    if for_:
        until_s = time.time() + parse_span_s(for_)
    elif until:
        until_s = parse_moment_s(until, datetime.now().astimezone())
    root = _root(home)
    note_pause(root, PauseNote(until_s=until_s))  # for workers that are started later
    _answered(_asked(root, {"verb": "pause", "until_s": until_s}), as_json, nobody="paused; no worker is running now")


def resume(home: Home = None, as_json: Json = False) -> None:
    """End the pause that you began; your rules may still say no, and `status` says so."""
    from worker.rules.file import note_pause

    root = _root(home)
    note_pause(root, None)
    _answered(_asked(root, {"verb": "resume"}), as_json, nobody="not paused any more; no worker is running now")


def finish(home: Home = None, as_json: Json = False) -> int:
    """Let the worker finish and send its present lease, and leave then. Exit code 1: none is running."""
    return _answered(_asked(_root(home), {"verb": "finish"}), as_json, nobody=NOBODY)


def leave(
    purge: Annotated[
        bool, typer.Option("--purge", help="Then delete this machine's keys, unsent work, cache and logs.")
    ] = False,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget",
            help="Then have its runs erase this machine's name, team, owner and address.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Purge without being asked.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> int:
    """Have the worker hand its lease back and leave now. Exit code 1: none is running."""
    from worker.siblings import run_folders

    root = _root(home)
    folders = [folder for folder in run_folders(root) if folder.is_dir()] if purge else []
    if folders and not yes:
        _confirm(root, len(folders))
    found = _asked(root, {"verb": "leave"})
    if forget:
        outcomes = _forgotten(root)
        if not purge or any(one.error is not None for one in outcomes):  # whose key is gone cannot ask again
            return _told_who_forgot(outcomes, found, as_json=as_json)
    if purge:
        for folder in folders:
            _delete(folder)
        if as_json:
            print_json({"workers": found, "deleted": [str(folder) for folder in folders]})
        else:
            print(f"deleted what this machine kept of {len(folders)} runs under {root}; your rules stay")
        return 0
    return _answered(found, as_json, nobody=NOBODY)


def logs(
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the last lines.")] = 40,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> int:
    """What happened, also before the last restart. Exit code 1: nothing did."""
    from worker.siblings import run_folders
    from worker.standing import LOG_FILE, log_lines

    root = _root(home)
    folders = run_folders(root)
    entries = sorted((each for folder in folders for each in log_lines(folder, lines)), key=lambda each: each["at_s"])
    for entry in entries[-lines:]:
        _print_entry(entry, as_json)
    if not entries and not follow:
        if not as_json:
            print(f"no worker has written a log under {root} yet")
        return 1
    if follow:
        for entry in _followed([folder / LOG_FILE for folder in folders]):
            _print_entry(entry, as_json)
    return 0


def _root(home: Path | None) -> Path:
    from worker.rejoin import home_root

    return home_root(home)


def _asked(root: Path, request: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers of all workers of this home that run."""
    import asyncio

    from protocol.errors import Unavailable
    from protocol.local_socket import NobodyListens, ask
    from worker.siblings import run_folders

    folders = run_folders(root)

    async def all_of_them() -> list[dict[str, Any]]:
        answers = []
        for folder in folders:
            try:
                answers.append(await ask(folder / "control" / "socket", request, timeout_s=ANSWER_S))
            except NobodyListens:
                continue
            except Unavailable:
                raise Unavailable(
                    f"a worker is here and does not answer within {ANSWER_S:.0f} s: this machine is very busy, or the"
                    " worker was stopped. Try again; a worker that was stopped goes on with kill -CONT"
                ) from None
        return answers

    return asyncio.run(all_of_them())


def _answered(found: list[dict[str, Any]], as_json: bool, *, nobody: str) -> int:
    if as_json:
        print_json({"workers": found})
    elif not found:
        print(nobody)
    else:
        for each in found:
            print(printable(each["says"]))
    return 0 if found else 1


def _show(each: dict[str, Any]) -> None:
    lease, rules = each["lease"], each["rules_trouble"]
    pairs = [("now", each["says"]), ("run", f"{each['run_id'] or 'not enrolled yet'}, at {each['coordinator']}")]
    if lease is not None and lease["steps"]:
        loss = "" if lease["loss"] is None else f", loss {lease['loss']:.3f}"
        text = f"{lease['lease']}, round {lease['round']}: step {lease['step']} of {lease['steps']}{loss}"
        pairs.append(("lease", text))
    pairs.append(("since its start", f"{each['accepted']} accepted, {each['rejected']} refused"))
    pairs += [("verdict", verdict["text"]) for verdict in each["verdicts"]]
    used = f"{human_bytes(each['today_bytes'])} today, {human_bytes(each['month_bytes'])} this month"
    pairs.append(("over the line", used))
    credit = each.get("credit")
    if credit and credit["rank"]:
        text = f"{credit['tokens']:,} validated tokens, rank {credit['rank']} of {credit['ranked']}"
        pairs.append(("credited", text))
    if each.get("energy"):
        from worker.energy import energy_words

        pairs.append(("energy", energy_words(**each["energy"])))
    if rules:
        pairs.append(("rules", rules))
    if each["rejected"]:
        pairs.append(("a refusal was wrong?", "barnraise worker appeal"))
    print_pairs((name, printable(str(value))) for name, value in pairs)


def _confirm(root: Path, count: int) -> None:
    from protocol.errors import ConfigError

    text = f"delete keys, unsent work and cache of {count} runs under {root}? Joining them again takes a new link each"
    if not sys.stdin.isatty():
        raise ConfigError(f"--purge would {text}: say --yes")
    if not typer.confirm(text, default=False):
        raise typer.Abort


def _forgotten(root: Path) -> list[KeyOutcome]:
    """Each run is asked to forget this machine's workers, one after another, once they work there no more."""
    import asyncio

    from protocol.errors import ConfigError
    from worker.identity import left
    from worker.rejoin import known_runs, links_of
    from worker.siblings import homes_of, run_folders

    for folder in (folder for folder in run_folders(root) if folder.is_dir()):
        with contextlib.suppress(ConfigError):  # told of the key in there, and the others are given up all the same
            _once_free(folder).release()
    homes = homes_of(root)
    links = links_of("", *homes) if known_runs(*homes) else []
    return [
        outcome
        for link in links
        for outcome in asyncio.run(left(root, f"{link.address}/#{link.fingerprint}", forget=True))
    ]


def _told_who_forgot(outcomes: list[KeyOutcome], workers: list[dict[str, Any]], *, as_json: bool) -> int:
    runs = list(dict.fromkeys(one.key.run_id for one in outcomes if one.error is None))
    failed = [one for one in outcomes if one.error is not None]
    if as_json:
        not_yet = [{"run": one.key.run_id, "gpu": one.key.gpu, "trouble": one.trouble} for one in failed]
        print_json({"workers": workers, "forgotten_by": runs, "not_forgotten": not_yet})
        return 1 if failed else 0
    if runs:
        print(f"left, and forgotten by {', '.join(runs)}: what this machine earned stands under two words of its key")
    for one in failed:
        what, why = f"{one.key.gpu or 'the first GPU'} in {one.key.run_id}", one.trouble.rstrip(".")
        say_error(f"not done for {what}: {why}; the same command tries again, and nothing is deleted before")
    if not outcomes:
        print("this machine takes part in no run, so there is nobody to forget it")
    return 1 if failed else 0


def _once_free(folder: Path) -> Any:
    """The folder's lock, held, once nobody works there any more; ConfigError where somebody still does."""
    from protocol.errors import ConfigError
    from worker.disk import worker_lock

    lock, waited_until_s = worker_lock(folder / "lock"), time.monotonic() + GONE_S
    while True:
        try:
            lock.acquire()
            return lock
        except ConfigError:
            if time.monotonic() > waited_until_s:
                raise
            time.sleep(0.1)


def _delete(folder: Path) -> None:
    """Once nobody works there any more."""
    lock = _once_free(folder)
    try:
        for path in sorted(folder.iterdir()):
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        lock.release()
    shutil.rmtree(folder)


def _print_entry(entry: dict[str, Any], as_json: bool) -> None:
    import json

    if as_json:
        print(json.dumps(entry), flush=True)
        return
    at = datetime.fromtimestamp(float(entry["at_s"]))
    print(f"{at:%m-%d %H:%M:%S} {printable(str(entry['text']))}", flush=True)


def _followed(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """What is added to the logs from now on."""
    from worker.standing import log_entry

    ends = {path: path.stat().st_size if path.exists() else 0 for path in paths}
    while True:
        for path in paths:
            with contextlib.suppress(OSError):
                size = path.stat().st_size
                start = ends[path] if size >= ends[path] else 0  # a new part of the log has begun
                with path.open("rb") as file:
                    file.seek(start)
                    whole, _, _ = file.read().rpartition(b"\n")
                ends[path] = start + len(whole) + (1 if whole else 0)
                entries = (log_entry(line) for line in whole.decode(errors="replace").splitlines())
                yield from (entry for entry in entries if entry is not None)
        time.sleep(FOLLOW_EVERY_S)

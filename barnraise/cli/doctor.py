"""`barnraise doctor`: what may keep this machine from working for a run, and how to mend it.

Decides formats and the exit code; worker/checkup.py looks.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated

import typer

from barnraise.cli.options import Json
from barnraise.cli.output import print_json
from barnraise.cli.rules import Home
from protocol.text import printable

_SIGNS = {"good": "ok  ", "note": "note", "bad": "BAD "}


def doctor(
    link: Annotated[
        str, typer.Argument(help="Check the way to this run, too: a join link, or HOST:PORT of a run that was joined.")
    ] = "",
    home: Home = None,
    as_json: Json = False,
) -> int:
    """Look this machine over: Python, GPU, memory, disk, clock, rules, and the way to your runs.

    Exit code 1: something keeps the worker from training.
    """
    from worker.checkup import Soundness, checkup
    from worker.rejoin import home_root, known_runs, link_of
    from worker.rules.house import senses_of
    from worker.rules.model import VolunteerRules

    root = home_root(home)
    known = [run.link(run.address.host, run.address.port) for run in known_runs(root) if run.address is not None]
    links = [link_of(link, root)] if link else known
    findings = []
    for finding in checkup(root, links, senses_of(VolunteerRules, time.monotonic)):
        findings.append(finding)
        if not as_json:
            print(f"{_SIGNS[finding.outcome]}  {finding.name:<8}  {printable(finding.found)}", flush=True)
            if finding.mend:
                print(f"{'':16}{printable(finding.mend)}")
    bad = sum(finding.outcome is Soundness.BAD for finding in findings)
    if as_json:
        print_json({"findings": [dataclasses.asdict(finding) for finding in findings], "bad": bad})
    elif bad:
        print(f"\n{bad} to be mended before this machine can train")
    return 1 if bad else 0

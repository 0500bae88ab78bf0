"""A run whose machine is destroyed half-way: moved to its follower, or begun anew from an archive; beside one in peace.

    python -m benchmarks.second_life [--quick] [--json FILE]

Real commands in processes of their own: a coordinator with a node of the run's peer-to-peer network, six workers that
train (`--p2p`, two of them share what they fetched). Three copies of one run, from the same first weights, one after
the other:

- `in peace`: to its end;
- `moved`: a follower (async) copies it. Half-way the coordinator is killed and its folder deleted; the follower is
  promoted and serves at another port. Nobody tells the workers: they have to find it;
- `forked`: half-way it is archived, then destroyed likewise. `coordinator fork` makes a run with keys of its own of the
  archive, and the six join by new links, as new workers.

Rows: `val_loss` at the end and `over_percent` over `in peace` (goal: at most 2), rounds, `away_s` from the kill to the
first submission that is accepted afterwards (goal of `forked`: 600), workers that came back. `--quick`: six rounds.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Row, parse_args, print_rows, write_results

WORKERS: Final = 6
SHARING: Final = 2
ROUNDS: Final = 16
PATIENCE_S: Final = 900.0
COLUMNS: Final = (
    {"heading": "the run's first machine", "shows": "{way}"},
    {"heading": "rounds", "shows": "{rounds:,}"},
    {"heading": "held-out loss", "shows": "{val_loss:.3f}"},
    {"heading": "over", "shows": "{over_percent:+.2f} %"},
    {"heading": "from its end to the next accepted work, s", "shows": "{away_s:.0f}"},
    {"heading": "workers that came back", "shows": "{came_back}"},
)


class Scene:
    """One machine's worth of processes, all of them ended at the end."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, log: str, *arguments: str) -> subprocess.Popen[bytes]:
        """`barnraise` with these, its output in a file."""
        with (self.root / log).open("ab") as out:
            process = subprocess.Popen(
                (sys.executable, "-m", "barnraise", *arguments),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def said(self, *arguments: str) -> str:
        """What a command printed; SystemExit with what it complained of."""
        done = subprocess.run(
            (sys.executable, "-m", "barnraise", *arguments), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"barnraise {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """It, and all that it started, in the middle of whatever they do."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def end(self) -> None:
        """Nobody is left."""
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._started:
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                self.kill(process)

    def until(self, what: str, found: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
        """What `found` gives once it is something."""
        until_s = time.monotonic() + patience_s
        while not (one := found()):
            if time.monotonic() > until_s:
                raise SystemExit(f"{what}: not within {patience_s:.0f} s; the logs are in {self.root}")
            time.sleep(2.0)
        return one


@contextlib.contextmanager
def scene(root: Path) -> Iterator[Scene]:
    """A scene in a new folder."""
    root.mkdir()
    made = Scene(root)
    try:
        yield made
    finally:
        made.end()


def prepare(root: Path, rounds: int) -> Path:
    """The run that is copied three times."""
    there, run = Scene(root), root / "run"
    there.said("data", "prepare", "stdlib", "--out", str(root / "data"))
    there.said(
        "coordinator", "init", str(run), "--preset", "tiny", "--data", str(root / "data"), "--seed", "7",
        "--rounds", str(rounds), "--host", "127.0.0.1", "--advertise", "127.0.0.1",
        "--set", f"min_workers={WORKERS}", "--set", "gather_s=60", "--set", "lease_ttl_s=120",
    )  # fmt: skip
    return run


def settle(run: Path, **changed: object) -> None:
    """Change plain settings of a run folder, as with an editor."""
    path = run / "settings.toml"
    kept = [line for line in path.read_text().splitlines() if line.partition(" =")[0] not in changed]
    path.write_text("\n".join([*(f"{key} = {json.dumps(value)}" for key, value in changed.items()), *kept]) + "\n")


def free_ports(count: int) -> list[int]:
    """Ports that nobody has, all at once."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in held]


def serve(there: Scene, run: Path) -> subprocess.Popen[bytes]:
    """The run at ports of its own, once it answers with a node in its links."""
    port, node, page = free_ports(3)
    settle(run, port=port, p2p=True, p2p_port=node)
    process = there.start(f"{run.name}.log", "coordinator", "run", str(run), "--http", f"127.0.0.1:{page}")
    there.until(f"{run.name} is served", lambda: _status(run), 120.0)
    return process


def join(there: Scene, run: Path) -> list[subprocess.Popen[bytes]]:
    """Six workers, by links that name the run's node."""
    there.until("links name the node", lambda: "?through=" in there.said("coordinator", "invite", str(run)), 120.0)
    links = there.said("coordinator", "invite", str(run), "--count", str(WORKERS)).split()
    workers = []
    for number, link in enumerate(links):
        shares = ("--share", "5MB") if number < SHARING else ()
        home = str(there.root / f"home-{run.name}-{number}")
        workers.append(
            there.start(
                f"worker-{run.name}-{number}.log",
                "worker",
                "join",
                link,
                "--home",
                home,
                "--p2p",
                "--threads",
                "1",
                "--device",
                "cpu",
                *shares,
            )
        )
    return workers


def _status(run: Path) -> dict[str, Any]:
    done = subprocess.run(
        (sys.executable, "-m", "barnraise", "status", str(run), "--json"), capture_output=True, text=True, check=False
    )
    try:
        told = json.loads(done.stdout)
    except ValueError:
        return {}
    return dict(told) if told.get("answering") else {}


def _accepted(run: Path) -> int:
    return int(_status(run).get("submissions_accepted", 0))


def ended(there: Scene, run: Path, server: subprocess.Popen[bytes]) -> float:
    """The last version's held-out loss, after the run's end."""
    there.until(f"{run.name} is over", lambda: server.poll() is not None)
    told = json.loads(there.said("status", str(run), "--json"))
    if not told["over"]:
        raise SystemExit(f"{run.name}: the coordinator ended before the run did; see {there.root}")
    return float(told["validations"][-1]["val_loss"])


def half_way(there: Scene, run: Path, rounds: int) -> None:
    """Wait for the middle round."""
    there.until("half of the rounds", lambda: int(_status(run).get("rounds_closed", 0)) >= rounds // 2)


def destroyed(there: Scene, run: Path, server: subprocess.Popen[bytes]) -> float:
    """The coordinator and its disk are gone; when."""
    there.kill(server)
    shutil.rmtree(run)
    return time.monotonic()


def in_peace(there: Scene, run: Path, _rounds: int) -> Row:
    """Nothing happens."""
    server = serve(there, run)
    join(there, run)
    return {"val_loss": ended(there, run, server)}


def moved(there: Scene, run: Path, rounds: int) -> Row:
    """Its follower goes on, elsewhere."""
    server, follower = serve(there, run), there.root / "follower"
    link = there.said("coordinator", "standby-link", str(run)).split()[-1]
    following = there.start("following.log", "coordinator", "follow", link, str(follower))
    workers = join(there, run)
    there.until("the follower has it", lambda: (_status(run).get("standby") or {}).get("attached"))
    half_way(there, run, rounds)
    gone_s = destroyed(there, run, server)
    there.said("coordinator", "promote", str(follower), "--other-machine-is-off")
    there.until("the follower lets go", lambda: following.poll() is not None or time.monotonic() > gone_s + 20.0)
    there.kill(following)
    server = serve(there, follower)
    return _afterwards(there, follower, server, workers, gone_s)


def forked(there: Scene, run: Path, rounds: int) -> Row:
    """Somebody else goes on, from an archive."""
    server, archive, fork = serve(there, run), there.root / "archive", there.root / "fork"
    workers = join(there, run)
    half_way(there, run, rounds)
    there.said("coordinator", "archive", str(run), str(archive))
    gone_s = destroyed(there, run, server)
    for worker in workers:
        there.kill(worker)
    there.said(
        "coordinator", "fork", str(archive), str(fork), "--data", str(there.root.parent / "data"),
        "--host", "127.0.0.1", "--advertise", "127.0.0.1",
    )  # fmt: skip
    server = serve(there, fork)
    return _afterwards(there, fork, server, join(there, fork), gone_s)


def _afterwards(
    there: Scene, run: Path, server: subprocess.Popen[bytes], workers: list[subprocess.Popen[bytes]], gone_s: float
) -> Row:
    before = _accepted(run)
    there.until("work is accepted again", lambda: _accepted(run) > before or server.poll() is not None)
    away_s = time.monotonic() - gone_s
    came = 0
    while server.poll() is None:
        came = max(came, int(_status(run).get("connected", 0)))
        time.sleep(5.0)
    return {
        "val_loss": ended(there, run, server),
        "away_s": away_s,
        "came_back": f"{came} of {len(workers)}",
    }


def main() -> None:
    """Measure and print."""
    args = parse_args(__doc__ or "")
    rounds = 6 if args.quick else ROUNDS
    rows: list[Row] = []
    folder = Path(tempfile.mkdtemp(prefix="barnraise-second-life-"))  # kept, with all logs, where something fails
    first = prepare(folder, rounds)
    for way, play in (("in peace", in_peace), ("moved", moved), ("forked", forked)):
        with scene(folder / way.replace(" ", "-")) as there:
            run = there.root / "run"
            shutil.copytree(first, run)
            row = play(there, run, rounds)
        over = 100.0 * (row["val_loss"] / (rows[0] if rows else row)["val_loss"] - 1.0)  # type: ignore[operator]
        rows.append({"way": way, "rounds": rounds, **row, "over_percent": over})
        print_rows(rows[-1:])
    shutil.rmtree(folder)
    print_rows(rows)
    if args.json is not None:
        write_results(args.json, rows, command="python -m benchmarks.second_life", columns=COLUMNS)


if __name__ == "__main__":
    main()

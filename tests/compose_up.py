"""What `test_compose` runs in a mount namespace of its own: each service's command line on volumes as an engine has.

Each volume is a file system of its own, empty but for a `lost+found` that only root may enter, and owned by the image's
user; each command is as docker-compose.yml has it, run as that user where this process may choose (real root), and with
the volumes at their own paths below `root`. Nothing is unmounted: the namespace ends with this process.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from coordinator.store.people import said_in

ROOT = Path(__file__).parents[1]
IMAGE_USER = 10001
WORKERS = ("worker-1", "worker-2", "worker-3")
SMALL = ["--rounds", "2", "--inner-steps", "2", "--batch", "2", "--sequence-length", "32",
         # steps this small see so little that at a run's usual rates an honest one may well raise the loss
         "--learning-rate", "0.004", "--set", "inner.muon_learning_rate=0.02"]  # fmt: skip


class Containers:
    """Each service's command line as a process, on mounted volumes."""

    def __init__(self, services: dict[str, Any], root: Path, port: int, *, as_image_user: bool) -> None:
        self._services = services
        self._root = root
        self._port = port
        self.page_port = _free_port()
        self._user: dict[str, Any] = {}
        if as_image_user:
            self._user = {"user": IMAGE_USER, "group": IMAGE_USER, "extra_groups": []}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._mount("home")  # the image's user has one

    def start(self, name: str, words: list[str] | None = None) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "HOME": str(self._root / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (self._root / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "barnraise", *(words or self._command(name))],
                cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, **self._user,
            )  # fmt: skip
        return self.running[name]

    def finish(self, name: str, words: list[str] | None = None) -> None:
        self.wait(name, self.start(name, words))

    def wait(self, name: str, process: subprocess.Popen[bytes]) -> None:
        if (code := process.wait(timeout=900)) != 0:
            logs = "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in sorted(self._root.glob("*.log")))
            raise SystemExit(f"{name} ended with {code}\n{logs}")

    def health(self) -> int:
        """The exit code of the coordinator's health check."""
        kind, program, *words = self._services["coordinator"]["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "barnraise")
        run = str(self._mount("run"))
        return self.start("health", [run if word == "/run-folder" else word for word in words]).wait(timeout=300)

    def _command(self, name: str) -> list[str]:
        service = self._services[name]
        words = list(service["command"])
        for volume in service["volumes"]:
            source, target = volume.split(":")
            where = str(self._mount(source))
            words = [where + word.removeprefix(target) if word.startswith(target) else word for word in words]
        if name == "init":  # the one address that a machine without containers does not have
            words[words.index("--advertise") + 1] = "127.0.0.1"
            words[words.index("--port") + 1] = str(self._port)
            words += SMALL
        if name == "coordinator":  # the page's port may be another program's here
            words[words.index("--http") + 1] = f"127.0.0.1:{self.page_port}"
        if name in WORKERS:
            words += ["--name", service["hostname"]]
        return words

    def _mount(self, volume: str) -> Path:
        place = self._root / volume
        if not place.exists():
            place.mkdir()
            options = "mode=0755" + (f",uid={IMAGE_USER},gid={IMAGE_USER}" if self._user else "")
            _mount("-t", "tmpfs", "-o", options, "tmpfs", str(place))
            (place / "lost+found").mkdir(mode=0o700)
        return place


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def open_way(needed: Path) -> None:
    """Let any user come to `needed`, here in this namespace alone, where a folder above it is its owner's only."""
    closed = [folder for folder in reversed(needed.parents) if not folder.stat().st_mode & 0o001]
    if not closed:
        return
    with tempfile.TemporaryDirectory() as aside:
        _mount("--bind", str(needed), aside)
        _mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(closed[0]))
        needed.mkdir(parents=True)
        _mount("--move", aside, str(needed))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def main(root: Path, port: int) -> None:
    """Up, a round, an export; prints what came of it."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    with Path("/proc/self/uid_map").open() as mapped:
        is_real_root = os.getuid() == 0 and mapped.read().split() == ["0", "0", "4294967295"]
    if is_real_root:
        for needed in (sys.base_prefix, sys.prefix, str(ROOT)):
            open_way(Path(needed).resolve())
    up = Containers(services, root, port, as_image_user=is_real_root)
    try:
        up.finish("init")
        up.finish("init")  # a second `up` finds the run and leaves it alone
        unserved = up.health()
        for name in ("coordinator", *WORKERS):
            up.start(name)
        for name in (*WORKERS, "coordinator"):
            up.wait(name, up.running[name])
        model = str(root / "run" / "model")
        up.finish("export", ["coordinator", "export", str(root / "run"), model])
        events = [json.loads(line) for line in (root / "run" / "events.jsonl").read_text().splitlines()]
        seen = {
            "enrolled": sorted(said_in(root / "run" / "registry.sqlite").names.values()),
            "rounds": sum(event["name"] == "RoundAggregated" for event in events),
            "model": sorted(path.name for path in Path(model).iterdir()),
            "owners": sorted({path.stat().st_uid for path in (root / "run").iterdir() if path.name != "lost+found"}),
            "unprivileged": is_real_root,
            "health_unserved": unserved,
        }
        print(json.dumps(seen))
    finally:
        for process in up.running.values():
            process.kill()
            process.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""Cuts each guard out of a copy of the tree, runs the tests that must then fail, and says which did not.

Decides nothing about guards (tests/guards/table.py). Always: the working tree is never written to; a test counts as
failed only when pytest ran it and it failed (a copy that cannot be imported is BROKEN, one that hangs HUNG: neither
proves anything); the same tests pass on the unmodified copy first. Each guard is a process of its own, forked from one
that has loaded torch and the other libraries, and nothing of ours, because loading them takes longer than most tests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tests.guards.cuts import Moved
from tests.guards.guard import ROOT, Guard, place_of

CAUGHT, SURVIVED, MOVED, BROKEN, HUNG = "caught", "SURVIVED", "MOVED", "BROKEN", "HUNG"
MAX_MEMORY_BYTES = 16 << 30
"""Of one process: what a guard kept out may be as large as it likes."""
_POLL_S = 0.05
_PLAIN_RUN = "pristine_run"
_LOADED = "ignore::pytest.PytestAssertRewriteWarning"  # a plugin that came with the libraries is there already
_HEAVY = ("torch", "transformers", "grpc", "pytest", "structlog", "pydantic", "cryptography.x509",
          "safetensors.torch", "typer", "rich.progress", "psutil", "tokenizers", "numpy")  # fmt: skip
_MODELS = ("mixtral", "olmoe", "qwen3_moe")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one guard's tests without it."""

    guard: Guard
    outcome: str
    seconds: float
    why: str
    """The first failure's last words, or what is wrong."""


def load_libraries() -> None:
    """What every test imports and no guard stands in."""
    import importlib

    for name in _HEAVY:
        importlib.import_module(name)
    for name in _MODELS:
        importlib.import_module(f"transformers.models.{name}.modeling_{name}")


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A folder for copies, gone at the end. In memory where that can be: what a test waits for most is its disk."""
    memory = Path("/dev/shm")
    within = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="barnraise-guards-", dir=within) as folder:
        yield Path(folder)


def copy_tree(to: Path) -> Path:
    """The working tree's files, without what git does not know or ignores; all of it where there is no git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode == 0:
        names = [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
        for name in names:
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    else:
        shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info"))
    return to


def run_guards(
    guards: Sequence[Guard], *, jobs: int, timeout_s: float, on_result: Callable[[Result], None]
) -> list[Result]:
    """Every guard cut out once; SystemExit with the reason where the unmodified copy does not pass."""
    results: list[Result] = []

    def add(result: Result) -> None:
        results.append(result)
        on_result(result)

    with workspace() as folder, _stopping_all():
        first, plain_run = copy_tree(folder / "copy-0"), folder / _PLAIN_RUN
        _check_unmodified(first, guards, plain_run, timeout_s=60.0 * len(guards) + timeout_s)
        # With what the first has compiled.
        free = [first, *(shutil.copytree(first, folder / f"copy-{number}") for number in range(1, jobs))]
        running: list[_Attempt] = []
        waiting = list(guards)
        while waiting or running:
            while waiting and free:
                _begin(waiting.pop(0), free, running, plain_run, add, timeout_s)
            time.sleep(_POLL_S)
            for attempt in [attempt for attempt in running if attempt.ended()]:
                running.remove(attempt)
                free.append(attempt.copy)
                add(attempt.result())
    return results


@contextlib.contextmanager
def _stopping_all() -> Iterator[None]:
    """Inside, whoever ends this process ends what it started too: groups of their own do not go by themselves."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for pid in list(_Child.running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def _begin(
    guard: Guard,
    free: list[Path],
    running: list[_Attempt],
    plain_run: Path,
    add: Callable[[Result], None],
    timeout_s: float,
) -> None:
    try:
        running.append(_Attempt(guard, free[-1], plain_run, timeout_s))
        free.pop()
    except (Moved, OSError) as error:
        add(Result(guard=guard, outcome=MOVED, seconds=0.0, why=str(error)))


def _check_unmodified(copy: Path, guards: Sequence[Guard], plain_run: Path, timeout_s: float) -> None:
    tests = sorted({test for guard in guards for test in guard.tests})
    child = _Child(copy, tests, plain_run, keep_run=True, until_failed=False, timeout_s=timeout_s)
    while not child.ended():
        time.sleep(_POLL_S)
    if child.status != 0 or child.failed:
        raise SystemExit(f"the tests do not pass as they are (status {child.status}):\n{child.output[-6000:]}")


class _Attempt:
    """One guard, cut out of one copy, and its tests under way."""

    def __init__(self, guard: Guard, copy: Path, plain_run: Path, timeout_s: float) -> None:
        self._guard, self.copy = guard, copy
        self._before: dict[Path, tuple[str, os.stat_result]] = {}
        edits = guard.edits(copy)
        for path, content in edits.items():
            was = path.stat()
            self._before[path] = (path.read_text(encoding="utf-8"), was)
            path.write_text(content, encoding="utf-8")
            # Compiled code is taken by time and size: a cut of the same size in the same second must not be missed.
            os.utime(path, (was.st_atime, was.st_mtime + 3600.0))
        given = None if guard.makes_run else plain_run
        self._child = _Child(copy, guard.tests, given, keep_run=False, until_failed=True, timeout_s=timeout_s)

    def ended(self) -> bool:
        """Whether it is over; the copy is whole again then."""
        if not self._child.ended():
            return False
        for path, (content, was) in self._before.items():
            path.write_text(content, encoding="utf-8")
            os.utime(path, (was.st_atime, was.st_mtime))
        return True

    def result(self) -> Result:
        """What became of it."""
        child = self._child
        missing = [test for test in self._guard.tests if not _among(test, child.failed)]
        if not missing:
            outcome, why = CAUGHT, next(iter(child.failed.values()))
        elif child.timed_out:
            outcome, why = HUNG, f"did not end in time: {', '.join(missing)}"
        elif child.status in {0, 1}:
            outcome, why = SURVIVED, f"passes without the guard: {', '.join(missing)}"
        else:
            outcome, why = BROKEN, f"status {child.status}: {child.output[-800:]}"
        return Result(guard=self._guard, outcome=outcome, seconds=child.seconds, why=why)


def _among(test: str, failed: dict[str, str]) -> bool:
    """Whether `test`, or any case of it where it names none, is among the node ids that failed."""
    wanted = place_of(test)
    return any(node == wanted or node.startswith(f"{wanted}[") for node in failed)


class _Child:
    """One pytest, in a forked process that is the leader of its own group."""

    running: ClassVar[set[int]] = set()
    """Process ids of those that are under way."""

    def __init__(
        self,
        copy: Path,
        tests: Sequence[str],
        plain_run: Path | None,
        *,
        keep_run: bool,
        until_failed: bool,
        timeout_s: float,
    ) -> None:
        self._report, self._log = copy.with_suffix(".report"), copy.with_suffix(".log")
        self._report.unlink(missing_ok=True)
        self._began_s, self._timeout_s = time.monotonic(), timeout_s
        self.status, self.seconds, self.timed_out = -1, 0.0, False
        self.failed: dict[str, str] = {}
        self._pid = os.fork()
        if self._pid > 0:
            with contextlib.suppress(OSError):
                os.setpgid(self._pid, self._pid)  # here too, so that it has its group before anybody may end it
            self.running.add(self._pid)
        else:
            watch = _Watch(tests if until_failed else (), plain_run, keep_run)
            os._exit(_run_tests(copy, tests, self._report, self._log, watch))

    def ended(self) -> bool:
        """Whether it is over; what it left running is stopped."""
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        self.seconds = time.monotonic() - self._began_s
        if pid == 0 and self.seconds < self._timeout_s:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        if pid == 0:
            self.timed_out = True
            _, status = os.waitpid(self._pid, 0)
        self.running.discard(self._pid)
        self.status = os.waitstatus_to_exitcode(status)
        with contextlib.suppress(FileNotFoundError, ValueError):
            self.failed = json.loads(self._report.read_text(encoding="utf-8"))
        return True

    @property
    def output(self) -> str:
        """What pytest said."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""


def _run_tests(copy: Path, tests: Sequence[str], report: Path, log: Path, watch: _Watch) -> int:
    """In the child: be a process that starts in `copy`, and run `tests`."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
        with log.open("wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.chdir(copy)
        os.environ["PYTHONPATH"] = str(copy)
        sys.dont_write_bytecode = watch.compares  # what is compiled without a guard is not to be found with it
        sys.path[:] = [str(copy), *(path for path in sys.path if path and Path(path) != ROOT)]
        for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
            del sys.modules[name]
        import pytest

        watch.report = report
        names = [place_of(test) for test in tests]
        scratch = copy.with_suffix(".tmp")
        options = ["--basetemp", str(scratch), "--tb=short", "-m", "", "-W", _LOADED, "--rootdir", str(copy)]
        status = int(pytest.main([*options, *names], plugins=[watch]))
        watch.write()
        sys.stdout.flush()
        return status
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 70


class _Watch:
    """Inside the child's pytest: notes what failed, and ends it once everything wanted has."""

    def __init__(self, wanted: Sequence[str], plain_run: Path | None, keep_run: bool) -> None:
        self._wanted, self._plain_run, self._keep_run = list(wanted), plain_run, keep_run
        self._failed: dict[str, str] = {}
        self.compares = not keep_run
        """Whether a guard is cut out."""
        self.report = Path()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A test, its setup or its teardown is over."""
        if report.failed and report.nodeid not in self._failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            words = str(crash.message if crash is not None else report.longrepr)
            self._failed[report.nodeid] = f"{report.when}: {' '.join(words.split())[:300]}"
            self.write()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Enough, where all that must fail did."""
        if self._wanted and all(_among(test, self._failed) for test in self._wanted):
            self._session.shouldstop = "all that must fail has failed"

    def pytest_sessionstart(self, session: Any) -> None:
        """Remember whom to stop."""
        self._session = session

    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
        """Give the run that the unmodified copy made: making one anew is the longest part of most tests."""
        given = self._plain_run
        if fixturedef.argname != _PLAIN_RUN or given is None or self._keep_run or not given.exists():
            return None
        fixturedef.cached_result = (given, fixturedef.cache_key(request), None)
        return given

    def pytest_fixture_post_finalizer(self, fixturedef: Any, request: Any) -> None:
        """Keep the run that the unmodified copy has made."""
        made, to = fixturedef.cached_result, self._plain_run
        wanted = self._keep_run and fixturedef.argname == _PLAIN_RUN
        if wanted and to is not None and made and made[2] is None and not to.exists():
            shutil.copytree(made[0], to)

    def write(self) -> None:
        """For the parent."""
        self.report.write_text(json.dumps(self._failed), encoding="utf-8")

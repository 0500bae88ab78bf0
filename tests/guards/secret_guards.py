"""Guards of secrets: the modes of private files and folders, and leaks that are planted one by one."""

from __future__ import annotations

from tests.guards.guard import Cut, Guard, guard

RUNFOLDER, FOLDERS = "coordinator/run/folder.py", "protocol/folders.py"
REAL = "test_secrets.py::test_a_real_run_tells_no_secret"
ALONE = "test_secrets.py::test_every_private_file_is_its_owners_alone"
VOLUNTEER = "test_secrets.py::test_a_volunteers_key_is_theirs_alone"
GIVEN = "test_secrets.py::test_a_link_is_read_from_a_file_or_standard_input"

MODES = (
    guard("private files", "protocol/private_files.py", "0o600)", "0o644)", ALONE, VOLUNTEER, makes_run=True),
    guard("private files", FOLDERS, "mkdir(mode=0o700 if kind.private else 0o777)", "mkdir()", ALONE, makes_run=True),
    guard("private files", RUNFOLDER, "secret.mkdir(mode=0o700)", "secret.mkdir()", ALONE, makes_run=True),
    guard("private files", "worker/disk.py", "path.mkdir(mode=0o700, ", "path.mkdir(", VOLUNTEER),
    guard("private files", "barnraise/cli/links.py", "0o600)", "0o644)", GIVEN),
    guard("a link given on standard input", "barnraise/cli/links.py", 'if str(source) == "-":', "if False:", GIVEN),
)

LEAKS = (
    guard(
        "in no log", "coordinator/edge/server.py", '_log.info("coordinator_started", ',
        '_log.info("coordinator_started", draws=self._folder.draw_secret().hex(), ', REAL,
        note="planted: the coordinator logs the run's secret",
    ),
    guard(
        "in no log", "worker/joining.py", "        reply = await self.client.enrol(request)\n",
        "        reply = await self.client.enrol(request)\n"
        '        self._reporter.say("enrolled", f"with {self._link}")\n', REAL,
        note="planted: the worker says its join link",
    ),
    guard(
        "in no status", "coordinator/edge/server.py", "            name=run.settings.name,\n",
        "            name=__import__('pathlib').Path(run.registry._path).with_name('secret')"
        ".joinpath('manifest.key').read_text(),\n", REAL,
        note="planted: the manifest key in the status",
    ),
    guard(
        "in no event", "coordinator/run/eventlog.py", "        self._descriptor = os.open(path, os.O_WRONLY",
        "        self._folder = path.parent\n        self._descriptor = os.open(path, os.O_WRONLY", REAL,
        also=(
            Cut(
                file="coordinator/run/eventlog.py", text='"data": _without_type(record)}',
                without='"data": (self._folder / "secret" / "draws.secret").read_bytes().hex()}',
            ),
        ),
        note="planted: the run's secret in each event's line",
    ),
    guard(
        "in no checkpoint", "coordinator/work/executor.py", "        for old in sorted(self._checkpoints.glob(",
        '        shutil.copy(self._checkpoints.parent / "secret" / "operator.key", target / "notes.txt")\n'
        "        for old in sorted(self._checkpoints.glob(", REAL,
        note="planted: the operator's key in a checkpoint",
    ),
    guard(
        "in no argument", "barnraise/cli/worker.py", "        chosen = read_link(link_file)\n",
        "        chosen = read_link(link_file)\n        import os, sys\n"
        '        rest = [chosen if word == "-" else word for word in sys.argv[1:]]\n'
        '        os.execv(sys.executable, [sys.executable, "-m", "barnraise", *rest])\n', REAL,
        note="planted: the worker starts itself anew, with the link that it read among its arguments",
    ),
    guard(
        "in no public file", "coordinator/run/reaching.py", '"pid": os.getpid()}',
        '"pid": os.getpid(), "key": folder.draw_secret().hex()}', REAL,
        note="planted: the run's secret in the file that says where the coordinator listens",
    ),
)  # fmt: skip

SECRETS: tuple[Guard, ...] = (*MODES, *LEAKS)

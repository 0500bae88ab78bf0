"""Guards of secrets: the modes of private files and folders, and leaks that are planted one by one."""

from __future__ import annotations

from tests.guards.cuts import becomes, never, planted
from tests.guards.guard import Guard, guard

REAL = "test_secrets.py::test_a_real_run_tells_no_secret"
ALONE = "test_secrets.py::test_every_private_file_is_its_owners_alone"
VOLUNTEER = "test_secrets.py::test_a_volunteers_key_is_theirs_alone"
IMPORTED = "tests/worker/test_keys_along.py::test_a_file_that_somebody_made_writes_nothing"
GIVEN = "test_secrets.py::test_a_link_is_read_from_a_file_or_standard_input"

MODES = (
    guard("private files", becomes("protocol:PrivateWriter", "0o600", "0o644"), ALONE, VOLUNTEER, makes_run=True),
    guard(
        "private files",
        becomes("protocol:filled_whole", "content.mkdir(mode=0o700 if kind.private else 0o777)", "content.mkdir()"),
        ALONE,
        makes_run=True,
    ),
    guard(
        "private files",
        becomes("coordinator.run:write_secrets", "secret.mkdir(mode=0o700)", "secret.mkdir()"),
        ALONE,
        makes_run=True,
    ),
    guard(
        "private files",
        becomes(
            "worker:private_folder",
            "folder.mkdir(mode=0o700, exist_ok=True)",
            "folder.mkdir(exist_ok=True)",
        ),
        VOLUNTEER,
    ),
    guard("private files", becomes("barnraise:write_links", "0o600", "0o644"), GIVEN),
    guard("an exported file of keys", never("worker.identity:_read", "not all(map(is_device, others))"), IMPORTED),
    guard(
        "an exported file of keys",
        never(
            "worker.identity:_read", "not _FINGERPRINT.fullmatch(fingerprint) or not set(files) <= set(_TAKEN_ALONG)"
        ),
        IMPORTED,
    ),
    guard("a link given on standard input", never("barnraise:read_link", 'str(source) == "-"'), GIVEN),
)

LEAKS = (
    guard("in no log", planted("coordinator:CoordinatorServer._serve",
          '_log.info("planted", draws=self._folder.draw_secret().hex())',
          after='_log.info("coordinator_started", ...)'), REAL, note="planted: the coordinator logs the run's secret"),
    guard("in no log", planted("worker:Joining.enrol", 'self._reporter.say("enrolled", f"with {self._link}")',
          before="enrolment.check(...)"), REAL, note="planted: the worker says its join link"),
    guard("in no status", becomes("coordinator:CoordinatorServer._add_services", "run.settings.name",
          '__import__("pathlib").Path(run.registry._path).with_name("secret").joinpath("manifest.key").read_text()'),
          REAL, note="planted: the manifest key in the status"),
    guard("in no event", planted("coordinator:EventLog.__init__", "self._folder = path.parent",
          before="os.open(path, ...)"), REAL, also=(becomes("coordinator:EventLog._write", "_without_type(...)",
          '(self._folder / "secret" / "draws.secret").read_bytes().hex()'),),
          note="planted: the run's secret in each event's line"),
    guard("in no checkpoint", planted("coordinator:Executor",
          'shutil.copy(self._checkpoints.parent / "secret" / "operator.key", target / "notes.txt")',
          after="export_checkpoint(_, _, target, ...)"), REAL, note="planted: the operator's key in a checkpoint"),
    guard("in no argument", planted("barnraise:join",
          'import os, sys\nrest = [chosen if word == "-" else word for word in sys.argv[1:]]\n'
          'os.execv(sys.executable, [sys.executable, "-m", "barnraise", *rest])',
          after="chosen = read_link(link_file)"), REAL,
          note="planted: the worker starts itself anew, with the link that it read among its arguments"),
    guard("in no public file", becomes("coordinator.run:write_endpoint",
          '{"host": host, "port": port, "pid": os.getpid()}',
          '{"host": host, "port": port, "pid": os.getpid(), "key": folder.draw_secret().hex()}'), REAL,
          note="planted: the run's secret in the file that says where the coordinator listens"),
)  # fmt: skip

SECRETS: tuple[Guard, ...] = (*MODES, *LEAKS)

"""The committed code is what the generator writes, byte for byte."""

import shutil
from pathlib import Path

import pytest

from protocol import generate
from protocol.errors import ConfigError

_ROOT = Path(generate.__file__).resolve().parent.parent


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    target = tmp_path / "protocol" / "v1"
    target.mkdir(parents=True)
    for file in (_ROOT / "protocol" / "v1").glob("barnraise*"):
        shutil.copy(file, target)
    return tmp_path


def test_committed_code_is_current() -> None:
    assert generate.outdated(_ROOT) == []


def test_twice_gives_the_same_bytes() -> None:
    assert generate.generate(_ROOT) == generate.generate(_ROOT)


def test_a_changed_contract_and_a_missing_file_are_noticed(copy: Path) -> None:
    contract = copy / "protocol" / "v1" / "barnraise.proto"
    contract.write_text(contract.read_text().replace("bool trusted = 5;", "bool trusted = 5; bool added = 60;"))
    assert set(generate.outdated(copy)) >= {"barnraise_pb2.py", "barnraise_pb2.pyi"}
    (copy / "protocol" / "v1" / "barnraise_pb2_grpc.py").unlink()
    assert "barnraise_pb2_grpc.py" in generate.outdated(copy)


def test_check_reports_and_exits_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0
    monkeypatch.setattr(generate, "outdated", lambda _: ["barnraise_pb2.py"])
    assert generate.main(["--check"]) == 1
    assert "run python -m protocol.generate" in capsys.readouterr().out


def test_another_generator_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(generate, "GRPCIO_TOOLS_VERSION", "1.0.0")
    with pytest.raises(ConfigError, match=r"pinned to grpcio-tools 1\.0\.0"):
        generate.generate(_ROOT)
    assert generate.main(["--check"]) == 2
    assert "error: generated code is pinned" in capsys.readouterr().err


def test_a_broken_contract_is_refused(copy: Path) -> None:
    (copy / "protocol" / "v1" / "barnraise.proto").write_text("syntax = nothing")
    with pytest.raises(ConfigError, match="protoc refused"):
        generate.generate(copy)


def test_imports_are_absolute() -> None:
    text = (_ROOT / "protocol" / "v1" / "barnraise_pb2_grpc.py").read_text()
    assert "from protocol.v1 import barnraise_pb2" in text

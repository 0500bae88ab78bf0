"""Writes the Python code of the wire contract from `v1/barnraise.proto`, and says whether what is committed is current.

`python -m protocol.generate` writes; `--check` compares and exits 1 on a difference. Output depends only on the .proto
and on the version of grpcio-tools, so that version is pinned here; a check with another one is refused instead of
reporting noise.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from protocol.errors import ConfigError

GRPCIO_TOOLS_VERSION = "1.85.1"
"""Generated code names the protobuf runtime that it was made for; another generator writes other bytes."""

_PACKAGE = "protocol/v1"
_PROTO = f"{_PACKAGE}/barnraise.proto"
_GENERATED = ("barnraise_pb2.py", "barnraise_pb2.pyi", "barnraise_pb2_grpc.py")


def generate(root: Path) -> dict[str, bytes]:
    """The generated files of the contract under `root` (the folder that holds `protocol/`), name to content."""
    installed = metadata.version("grpcio-tools")
    if installed != GRPCIO_TOOLS_VERSION:
        raise ConfigError(
            f"generated code is pinned to grpcio-tools {GRPCIO_TOOLS_VERSION}, installed is {installed}:"
            f" install that version, or raise GRPCIO_TOOLS_VERSION and regenerate"
        )
    from grpc_tools import protoc  # type: ignore[import-untyped, unused-ignore]  # it has no stubs

    with tempfile.TemporaryDirectory() as folder:
        outcome = protoc.main(
            [
                "protoc",
                f"--proto_path={root}",
                f"--python_out={folder}",
                f"--pyi_out={folder}",
                f"--grpc_python_out={folder}",
                _PROTO,
            ]
        )
        if outcome != 0:
            raise ConfigError(f"protoc refused {root / _PROTO} with exit status {outcome}")
        return {name: (Path(folder) / _PACKAGE / name).read_bytes() for name in _GENERATED}


def outdated(root: Path) -> list[str]:
    """Names of the committed files that differ from what the generator writes now."""
    target = root / _PACKAGE
    fresh = generate(root)
    return [name for name in fresh if not (target / name).is_file() or (target / name).read_bytes() != fresh[name]]


def main(arguments: list[str] | None = None) -> int:
    """Entry of `python -m protocol.generate`."""
    parser = argparse.ArgumentParser(
        prog="python -m protocol.generate", description="generate protocol/v1 from its .proto"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the committed code differs")
    options = parser.parse_args(arguments)
    root = Path(__file__).resolve().parent.parent
    try:
        stale = outdated(root)
        if options.check:
            for name in stale:
                print(f"{_PACKAGE}/{name} differs from what {_PROTO} generates: run python -m protocol.generate")
            return 1 if stale else 0
        for name, content in generate(root).items() if stale else ():
            (root / _PACKAGE / name).write_bytes(content)
        print(f"{_PACKAGE}: {len(stale)} of {len(_GENERATED)} files written")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

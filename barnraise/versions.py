"""Which versions are installed, read from package metadata: nothing is imported to find out.

Decides which packages are worth naming in a report.
"""

from __future__ import annotations

import platform
from importlib import metadata

_PACKAGES = ("barnraise", "torch", "transformers", "safetensors", "tokenizers", "grpcio", "protobuf", "numpy")


def installed_versions() -> dict[str, str]:
    """Name to version, for Python, the platform, ourselves and the packages that decide results."""
    found = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found

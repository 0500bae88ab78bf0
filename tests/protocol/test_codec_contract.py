"""Every codec of the table fills the port."""

from __future__ import annotations

import subprocess
import sys

import pytest

from protocol.codecs import CODECS, Codec
from tests.protocol.codec_contract import CodecContract

SPARSE = ("top_k",)


class TestDense(CodecContract):
    @pytest.fixture(params=[name for name in CODECS if name not in SPARSE])
    def codec(self, request: pytest.FixtureRequest) -> Codec:
        return CODECS[request.param]


class TestSparse(CodecContract):
    """One normal value of 64 holds an eighth of the sum of squares; what fades is not made up for."""

    agreement = 0.3
    rounds_to_make_up = 256
    error_left = 0.65

    @pytest.fixture(params=SPARSE)
    def codec(self, request: pytest.FixtureRequest) -> Codec:
        return CODECS[request.param]


@pytest.mark.parametrize("name", CODECS)
def test_the_table_calls_a_codec_by_its_own_name(name: str) -> None:
    assert CODECS[name].name == name
    assert name.isidentifier()
    assert len(name) <= 32


def test_naming_codecs_loads_no_torch() -> None:
    program = "import sys, protocol.codecs; print(sorted({'torch', 'numpy'} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

"""How an arithmetic class is spelt and read, and what a stranger may put in its place."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.arithmetic import MAX_ARITHMETIC_CHARACTERS, ArithmeticClass, arithmetic_class, is_arithmetic

ONE = ArithmeticClass(device="cpu", chip="GenuineIntel 6 143 AVX512", torch="2.13.0+cpu", dtype="fp32", threads=4)


def test_what_is_spelt_is_read() -> None:
    assert str(ONE) == "cpu, GenuineIntel 6 143 AVX512, torch 2.13.0+cpu, fp32, 4 threads"
    assert arithmetic_class(str(ONE)) == ONE


@pytest.mark.parametrize("other", [{"threads": 5}, {"dtype": "bf16"}, {"torch": "2.13.1"}, {"chip": "AuthenticAMD"}])
def test_whatever_rounding_depends_on_makes_another_class(other: dict[str, object]) -> None:
    assert arithmetic_class(str(dataclasses.replace(ONE, **other))) != ONE  # type: ignore[arg-type]


def test_a_name_with_commas_is_one_name() -> None:
    found = arithmetic_class(str(dataclasses.replace(ONE, chip="Some GPU, 9.0,  twice")))
    assert found is not None
    assert found.chip == "Some GPU 9.0 twice"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cpu",
        str(ONE).replace("torch ", ""),
        str(ONE).replace(" threads", ""),
        str(ONE).replace("4 threads", "-4 threads"),
        str(ONE).replace("4 threads", "9999999 threads"),
        str(ONE).replace("4 threads", "٤ threads"),
        str(ONE) + ", more",
        str(ONE).replace("Intel", "Intel\x1b[31m"),
    ],
)
def test_anything_else_is_no_class(text: str) -> None:
    assert arithmetic_class(text) is None


def test_a_class_that_is_too_long_is_cut_and_then_none() -> None:
    spelt = str(dataclasses.replace(ONE, chip="x" * 500))
    assert is_arithmetic(spelt)
    assert arithmetic_class(spelt) is None


def test_only_printable_ascii_of_a_bounded_length_may_be_said() -> None:
    assert is_arithmetic("")
    assert is_arithmetic("~" * MAX_ARITHMETIC_CHARACTERS)
    assert not is_arithmetic("~" * (MAX_ARITHMETIC_CHARACTERS + 1))
    assert not any(map(is_arithmetic, ("a\nb", "\x1b[2J", "é", "a\u202eb", "\x00")))


@given(st.text(max_size=300))
def test_nothing_that_is_said_breaks_the_reader(text: str) -> None:
    found = arithmetic_class(text)
    assert found is None or arithmetic_class(str(found)) == found


def test_only_a_cpu_is_taken_to_repeat_itself() -> None:
    assert ONE.is_repeatable
    assert not dataclasses.replace(ONE, device="cuda").is_repeatable

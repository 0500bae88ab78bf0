"""The page of devices is what the code does with each kind of machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.machine.places import PLACES, Place, row_of, table

PAGE = Path(__file__).parents[2] / "docs" / "devices.md"


def place(part: str) -> Place:
    (found,) = [one for one in PLACES if part in one.name]
    return found


def test_the_page_has_the_table() -> None:
    _, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- worker.machine.places -->\n")
    assert rest.partition("<!-- end -->")[0] == table(), "write what python -m worker.machine.places prints"


@pytest.mark.parametrize(
    ("part", "answer", "dtype", "products"),
    [
        ("Turing", "cuda:0", "fp32", "padded: torch has no other"),
        ("Ampere", "cuda:0", "bf16", "measured; padded expected"),
        ("Hopper", "cuda:0", "bf16", "measured; grouped expected"),
        ("ROCm build", "cuda:0", "bf16", "measured; padded expected"),
        ("Apple GPU (MPS)", "cpu; the GPU is NOT used", "fp32", "grouped"),
        ("xpu", "refused", "–", "–"),
        ("without CUDA", "cpu; the GPU is NOT used", "fp32", "grouped"),
    ],
)
def test_a_row_is_what_the_probe_answers(part: str, answer: str, dtype: str, products: str) -> None:
    row = row_of(place(part))
    assert row[2].startswith(answer)
    assert row[3:5] == (dtype, products)

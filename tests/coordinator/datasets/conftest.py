"""Small texts whose documents can be told apart wherever their bytes turn up."""

import pytest

from coordinator.datasets import prepare


def document(number, lines=40):
    return "".join(
        f"document {number:04d} line {line:03d} says {(number * 7919 + line) % 9973}\n" for line in range(lines)
    )


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for number in range(60):
        sub = folder / f"part{number % 3}"
        sub.mkdir(exist_ok=True)
        (sub / f"{number:04d}.txt").write_text(document(number), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def dataset(text_folder, tmp_path_factory):
    return prepare([text_folder], tmp_path_factory.mktemp("data"), heldout_share=0.2)

"""What a lossless compressor gains on bf16 payloads, whose two bytes a value are taken apart beforehand.

    python -m benchmarks.byte_planes [--quick] [--json FILE]

Real pseudo-gradients of the `tiny` preset by the worker's own trainer, from a fresh base and a trained one. Planes are
cut by granule, so that a span could still be decoded alone. `saved` is the share of bf16's bytes that zlib's fastest
level leaves out where it packs the high bytes (sign and exponent) alone, `saved_best` of its slowest; `saved_high` and
`saved_low` are shares of either plane. `mb_s_in` and `mb_s_out` are of bf16 bytes, one thread. `int8_over_bf16` are the
bytes of int8 over bf16's, beside the relative error of both.
"""

from __future__ import annotations

import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.byzantine_run import prepared
from benchmarks.replay_noise import FRESH, TRAINED, NoiseBench, NoiseCase, plain_kernels
from coordinator.datasets import Dataset
from protocol.codecs import BF16, FP32, GRANULE, codec_named
from protocol.specs import TensorSpec
from protocol.tensors import decode_tensors, encode_tensors

FASTEST, SLOWEST = 1, 9


def main() -> None:
    """Print the rows, and write them where asked."""
    options = report.parse_args(__doc__ or "")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="barnraise-planes-") as scratch, plain_kernels() as elsewhere:
        bench = NoiseBench(Dataset.open(prepared(Path(scratch))), elsewhere)
        steps = (10,) if options.quick else (10, 50)
        rows = [row_of(bench, base, count) for base in (FRESH, TRAINED) for count in steps]
    print(f"{report.machine()}, torch {torch.__version__}, one thread")
    report.print_rows(rows)
    if options.json is not None:
        report.write_json(options.json, rows)


def row_of(bench: NoiseBench, base: str, steps: int) -> report.Row:
    """One lease's pseudo-gradient."""
    case = NoiseCase(model="tiny", optimizer="adamw", compute="fp32", base=base, steps=steps)
    made = bench.task(case, seed=0, start=1_000_000).computed()
    tensors = {f"{block}/{name}": tensor for block, own in made.items() for name, tensor in own.items()}
    high, low = planes(tensors)
    sizes = {name: len(b"".join(packed(plane, FASTEST))) for name, plane in (("high", high), ("low", low))}
    best = len(b"".join(packed(high, SLOWEST)))
    came_s, went_s = timed(high)
    plain = 2 * len(high)
    return {
        "base": base,
        "steps": steps,
        "bf16_bytes": plain,
        "saved_high": 1 - sizes["high"] / len(high),
        "saved_low": 1 - sizes["low"] / len(low),
        "saved": (len(high) - sizes["high"]) / plain,
        "saved_best": (len(high) - best) / plain,
        "mb_s_in": plain / came_s / 1e6,
        "mb_s_out": plain / went_s / 1e6,
        "int8_over_bf16": len(encode_tensors(tensors, codec_named("int8"))) / len(encode_tensors(tensors, BF16)),
        **{f"error_{name}": error_of(tensors, name) for name in ("bf16", "int8")},
    }


def planes(tensors: dict[str, torch.Tensor]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The high and the low bytes of all values in bf16."""
    flat = torch.cat([tensor.reshape(-1).to(torch.bfloat16).view(torch.int16) for tensor in tensors.values()])
    pairs = flat.numpy().view(np.uint8).reshape(-1, 2)
    return pairs[:, 1].copy(), pairs[:, 0].copy()


def packed(plane: NDArray[np.uint8], level: int) -> Iterator[bytes]:
    """Granule by granule."""
    for start in range(0, len(plane), GRANULE):
        yield zlib.compress(plane[start : start + GRANULE].tobytes(), level)


def timed(plane: NDArray[np.uint8]) -> tuple[float, float]:
    """Processor seconds of compressing and of decompressing, the least of three."""
    went: list[tuple[float, float]] = []
    for _ in range(3):
        began_s = time.thread_time()
        pieces = list(packed(plane, FASTEST))
        half_s = time.thread_time()
        for piece in pieces:
            zlib.decompress(piece, bufsize=GRANULE)
        went.append((half_s - began_s, time.thread_time() - half_s))
    return min(came for came, _ in went), min(back for _, back in went)


def error_of(tensors: dict[str, torch.Tensor], name: str) -> float:
    """Relative error of all values together."""
    codec, specs = codec_named(name), [TensorSpec(key, tuple(tensor.shape)) for key, tensor in tensors.items()]
    back = decode_tensors(encode_tensors(tensors, codec), specs, codec)
    exact = decode_tensors(encode_tensors(tensors, FP32), specs, FP32)
    lost = sum(float((back[key] - exact[key]).square().sum()) for key in tensors)
    return float((lost / sum(float(exact[key].square().sum()) for key in tensors)) ** 0.5)


if __name__ == "__main__":
    main()

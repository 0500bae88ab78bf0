"""Text from a model that this machine could not hold: tokens a second, and what memory it takes.

    python -m benchmarks.sampling [--quick] [--folder FOLDER] [--json FILE]

A checkpoint of random bf16 weights in the shape of OLMoE-7B is written (14 GB of disk, gone afterwards; --quick: a
model of an eighth of its layers and experts). `barnraise sample` writes greedily with it, its experts read from the
disk when a token goes to them: once with nothing of the files in the system's cache, once with what of them stays
there, each time in a process of its own. `peak_mb` is the most that the process had in memory (VmHWM), torch and
`transformers` among it; the system's cache of files is nobody's memory. `first_s` is until the first token: every
expert that the prompt goes to is read once. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.report import machine, print_rows, write_results

FILE_BYTES = 2_000_000_000
POOL = 1 << 24
"""Random values that tensors are made of, each from another place on: what is timed does not depend on which."""
COLUMNS = (
    {"heading": "model", "shows": "{model}"},
    {"heading": "weights on disk", "shows": "{weights_mb:,} MB"},
    {"heading": "files", "shows": "{files}"},
    {"heading": "prompt", "shows": "{prompt_tokens} tokens"},
    {"heading": "first token after", "shows": "{first_s:.1f} s"},
    {"heading": "tokens a second", "shows": "{tokens_per_s:.2f}"},
    {"heading": "tokens", "shows": "{tokens}"},
    {"heading": "processor seconds in all", "shows": "{cpu_s:.1f}"},
    {"heading": "peak memory", "shows": "{peak_mb:,} MB"},
)
MEMORY = "4GB"
"""For experts: with trunk, torch and `transformers` that is well below 8 GB."""
PROMPT = "The barn was raised in a day, since everybody in the valley came to help, and "


def main() -> None:
    """Print the rows, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute: a small model")
    parser.add_argument("--folder", type=Path, default=None, help="where there is room on a disk")
    parser.add_argument("--tokens", type=int, default=32, help="to be written, each time")
    parser.add_argument("--json", type=Path, metavar="FILE", default=None, help="write the rows to FILE, too")
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        given = Path(place) / "given"
        name, weights_bytes = made(given, quick=options.quick)
        rows = [
            {"model": name, "weights_mb": round(weights_bytes / 1e6), "files": files, **sampled(given, options.tokens)}
            for files in (_cold(given), _warm(given))
        ]
    print_rows(rows)
    if options.json is not None:
        write_results(options.json, rows, command="python -m benchmarks.sampling", beside=load(), columns=COLUMNS)


def made(given: Path, *, quick: bool) -> tuple[str, int]:
    """The checkpoint in `given`; its name and the bytes of its weights."""
    import torch

    from moe.config import config_from_json, config_to_json
    from moe.layout import layout
    from moe.presets import preset
    from moe.skeleton import meta_model
    from moe.tokenizer import TOKENIZER_FILE, byte_tokenizer_json
    from moe.writing import header_of, written_tensors

    smaller = {"num_hidden_layers": 2, "num_experts": 16} if quick else {}
    values = config_to_json(preset("olmoe-7b")) | smaller
    cut = layout(config_from_json(values), "frozen")
    model = meta_model(config_from_json(values))
    wanted = written_tensors(model, cut, torch.bfloat16)
    pool = torch.empty(2 * POOL).normal_(0.0, 0.02, generator=torch.Generator().manual_seed(1)).bfloat16()
    ones, total, first, index = torch.ones(1 << 20, dtype=torch.bfloat16), 0, 0, {}
    given.mkdir()
    while first < len(wanted):
        stop, file_bytes = first + 1, wanted[first].payload_bytes
        while stop < len(wanted) and file_bytes + wanted[stop].payload_bytes <= FILE_BYTES:
            file_bytes, stop = file_bytes + wanted[stop].payload_bytes, stop + 1
        name = f"model-{first:05d}.safetensors"
        with (given / name).open("wb") as file:
            file.write(header_of(wanted[first:stop]))
            for number, one in enumerate(wanted[first:stop], first):
                index[one.name] = name
                begin = number * 7919 % POOL
                for start in range(0, one.elements, POOL):
                    count = min(POOL, one.elements - start)
                    is_norm = "norm" in one.name
                    part = ones[:count] if is_norm else pool[begin : begin + count]
                    file.write(part.contiguous().view(torch.uint8).numpy().data)
        total, first = total + file_bytes, stop
    (given / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    model.config.dtype = "bfloat16"
    model.config.save_pretrained(given)
    (given / TOKENIZER_FILE).write_bytes(byte_tokenizer_json())
    return "an eighth of OLMoE-7B" if quick else "OLMoE-7B's shape", total


def sampled(given: Path, tokens: int) -> dict[str, Any]:
    """What the command says of itself, in a process of its own."""
    program = (
        "import json, sys, time; from barnraise.cli.app import run; code = run(sys.argv[1:]); "
        "status = open('/proc/self/status').read(); "
        "peak = int(status.split('VmHWM:')[1].split()[0]); "
        "print(json.dumps({'peak_kb': peak, 'cpu_s': time.process_time()})); sys.exit(code)"
    )
    options = ["--prompt", PROMPT, "--tokens", str(tokens), "--temperature", "0", "--json", "--memory", MEMORY]
    command = [sys.executable, "-c", program, "sample", str(given), *options]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    text, _, peak = said.rstrip().rpartition("\n")
    found = json.loads(text)
    told = json.loads(peak)
    shown = {key: found[key] for key in ("prompt_tokens", "first_s", "tokens_per_s", "tokens")}
    return {**shown, "cpu_s": round(told["cpu_s"], 1), "peak_mb": round(told["peak_kb"] * 1024 / 1e6)}


def load() -> str:
    """What else the machine had to do."""
    return f"under a load of {os.getloadavg()[0]:.0f}"


def _cold(given: Path) -> str:
    """Nothing of the files is in the system's cache."""
    for path in given.glob("*.safetensors"):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    return "cold"


def _warm(given: Path) -> str:
    """As much of them is there as the system keeps."""
    for path in sorted(given.glob("*.safetensors")):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    return "warm"


if __name__ == "__main__":
    main()

"""Makes the fixture of one release: a run folder as that release leaves it, packed.

    PYTHONPATH=TREE python tests/releases/make.py OUT.tar.xz

TREE is the release's own tree (`git archive TAG | tar -x -C TREE`). Uses the command alone, as its users do, so that it
works in any tree: `init` from a checkpoint of thirty thousand parameters, two workers that train a few rounds, and a
coordinator that is stopped cleanly. What `status` said of it then lies beside the run, in `facts.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "barnraise")
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
}
ROUNDS = 3
"""Closed before the coordinator is stopped."""
LEFT_OUT = {"events.jsonl", "coordinator.lock", "control", "endpoint.json", "log", "checkpoints"}
"""Of the run folder: never read back, or this machine's alone."""
PATIENCE_S = 240.0


def main() -> None:
    """One fixture."""
    out = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        _checkpoint(root / "model")
        _text(root / "text.py")
        _said("coordinator", "init", "run", "--checkpoint", "model", "--data", "text.py", "--host", "127.0.0.1",
              "--port", "0", "--sequence-length", "32", "--rounds", "1000", "--replicas", "2", "--quorum", "1",
              "--inner-steps", "2", "--batch", "2", "--set", "gather_s=0", "--set", "screening.enabled=false",
              "--name", "an older run", root=root)  # fmt: skip
        facts = _train(root)
        with contextlib.suppress(subprocess.CalledProcessError):  # the first ones had no word for a stopped run
            facts = json.loads(_said("status", "run", "--json", root=root, ends=(0, 1)))
        (root / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
        with tarfile.open(out, "w:xz") as packed:
            packed.add(root / "facts.json", "facts.json", filter=_nobodys)
            for path in sorted((root / "run").rglob("*")):
                name = path.relative_to(root)
                if name.parts[1] not in LEFT_OUT:
                    packed.add(path, str(name), recursive=False, filter=_nobodys)
    print(f"{out}: {out.stat().st_size} bytes, round {facts['round']}, version {facts['version']}")


def _checkpoint(folder: Path) -> None:
    import torch
    from transformers import OlmoeConfig, OlmoeForCausalLM

    from moe.tokenizer import BOS_ID, BYTE_VOCAB_SIZE, EOS_ID, PAD_ID

    torch.manual_seed(7)
    special: dict[str, Any] = {"pad_token_id": PAD_ID, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
    config = OlmoeConfig(vocab_size=BYTE_VOCAB_SIZE, norm_topk_prob=True, **special, **SMALL)
    OlmoeForCausalLM(config).save_pretrained(folder)


def _text(path: Path) -> None:
    lines = (f"def function_{number}(x):\n    return x + {number * number % 97}\n\n\n" for number in range(1500))
    path.write_text("".join(lines))


def _train(root: Path) -> dict[str, Any]:
    """The last that was said of it while it was served."""
    with (root / "log").open("wb") as log, contextlib.ExitStack() as running:
        serving = _started(root, log, running, "coordinator", "run", "run", "--invites", "2", "--invites-to", "links")
        links = _waited(lambda: (sorted(root.glob("links/*"))[1:] and sorted(root.glob("links/*"))) or None, root)
        workers = [
            _started(root, log, running, "worker", "join", link.read_text().strip(), "--home", f"home-{name}",
                     "--threads", "1", "--name", name)
            for link, name in zip(links, ("ada", "grace"), strict=True)
        ]  # fmt: skip
        facts: dict[str, Any] = _waited(lambda: _told(root), root)
        for process in (*workers, serving):
            process.send_signal(signal.SIGINT)
            process.wait(60)
        return facts


def _told(root: Path) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] = json.loads(_said("status", "run", "--json", root=root))
    except (subprocess.CalledProcessError, ValueError):
        return None
    return facts if facts["version"] >= ROUNDS else None


def _waited(look: Any, root: Path) -> Any:
    until_s = time.monotonic() + PATIENCE_S
    while (found := look()) is None:
        if time.monotonic() > until_s:
            raise SystemExit((root / "log").read_text()[-4000:])
        time.sleep(0.5)
    return found


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _started(root: Path, log: Any, running: contextlib.ExitStack, *words: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([*COMMAND, *words], cwd=root, env=_environment(), stdout=log, stderr=log)
    running.callback(process.kill)
    return process


def _said(*words: str, root: Path, ends: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run([*COMMAND, *words], cwd=root, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode not in ends:
        print(done.stderr[-2000:], file=sys.stderr)
        raise subprocess.CalledProcessError(done.returncode, words)
    return done.stdout


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """No account's name or number goes along."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()

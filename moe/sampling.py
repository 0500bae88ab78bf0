"""Text that a model writes, token by token: of a checkpoint, or of a version's blocks where they lie.

Decides how the next token is drawn and how text comes out while it is written. Holds always: only the trunk is in
memory (`moe.on_demand`), so a model that no machine here could hold is tried on one that holds its trunk; greedy text
is what `generate` of `transformers` gives; the same seed writes the same text, and nobody else's chance is touched.
Reads files; writes none, but for a tokenizer in a temporary folder. No code of a checkpoint runs.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList

from moe.companions import Companions, export_companions, write_companions
from moe.config import config_from_json, config_to_json
from moe.export import checkpoint_blocks, inspect_checkpoint
from moe.layout import Layout, layout
from moe.on_demand import Told, on_demand_model
from moe.tokenizer import OTHER_FORMATS, TOKENIZER_FILE
from moe.weights import checked_dtype
from protocol.errors import ConfigError
from protocol.ids import BlockId
from protocol.residency import FROZEN

AS_KEPT = "auto"
"""bf16 where the weights are kept in it, else fp32."""
_GENERATION_FILE = "generation_config.json"
_NOT_YET = "\ufffd"
"""What a tokenizer makes of the first bytes of a character."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chance:
    """How the next token is drawn."""

    seed: int = 0
    temperature: float = 0.8
    """0 takes the likeliest."""
    top_p: float = 1.0
    """Only the likeliest tokens that have this probability together are drawn from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenText:
    """What came."""

    text: str
    prompt_tokens: int
    tokens: int
    first_s: float
    """Until the first token: reading the prompt."""
    tokens_per_s: float | None
    """After the first one; None where there was no second."""


class Writer:
    """A model and its tokenizer. Made by `writer_of_checkpoint` or `writer_of_blocks`."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, name: object, remarks: tuple[str, ...] = ()) -> None:
        self._model: Any = model
        self._tokenizer, self._name = tokenizer, name
        self.remarks = remarks
        """Sentences that a person should see."""

    def write(
        self, prompt: str, most_tokens: int, chance: Chance, on_text: Callable[[str], object] = lambda _: None
    ) -> WrittenText:
        """Go on after `prompt` with `most_tokens` at most; `on_text` hears what comes, as it comes.

        Bytes of a prompt that were no UTF-8 (lone surrogates, as Python passes them on) are taken as U+FFFD. Where the
        tokenizer makes nothing of a prompt, the model goes on from the token that begins, or else ends, a text.
        """
        ids_1T = _prompt_ids(self._tokenizer, self._model.config, prompt, self._name)
        room = self._room_after(ids_1T.shape[1])
        listener = _Listener(self._tokenizer, on_text)
        drawn: dict[str, Any] = {"do_sample": False}
        if chance.temperature > 0:
            drawn = {"do_sample": True, "temperature": chance.temperature, "top_k": 0, "top_p": chance.top_p}
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(chance.seed)
            self._model.generate(
                input_ids=ids_1T,
                attention_mask=torch.ones_like(ids_1T),
                max_new_tokens=min(most_tokens, room),
                streamer=listener,
                logits_processor=LogitsProcessorList([_Finite(self._name)]),
                **drawn,
            )
        return listener.written(ids_1T.shape[1])

    def _room_after(self, prompt_tokens: int) -> int:
        longest = int(config_to_json(self._model.config).get("max_position_embeddings", 1 << 30))
        if prompt_tokens >= longest:
            raise ConfigError(
                f"the prompt has {prompt_tokens} tokens, and the model reads at most {longest}: give a shorter one"
            )
        return longest - prompt_tokens


class _Finite(LogitsProcessor):
    """A model that has gone wrong draws nothing."""

    def __init__(self, name: object) -> None:
        self._name = name

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if not scores.isfinite().all():
            raise ConfigError(f"the model in {self._name} cannot write: what it computes is not finite")
        return scores


class _Listener:
    """What `generate` tells of each token, as text: whole characters, once."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], object]) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._ids: list[int] = []
        self._told = 0
        self._began_s = self._first_s = self._last_s = time.perf_counter()
        self._has_prompt = False

    def put(self, ids: Tensor) -> None:
        """The prompt, then one token at a time."""
        if not self._has_prompt:
            self._has_prompt = True
            return
        self._last_s = time.perf_counter()
        if not self._ids:
            self._first_s = self._last_s
        self._ids += ids.flatten().tolist()
        text = self._text()
        if not text.endswith(_NOT_YET):
            self._tell(text)

    def end(self) -> None:
        """Nothing more comes."""
        self._tell(self._text())

    def written(self, prompt_tokens: int) -> WrittenText:
        """All of it."""
        count, spent_s = len(self._ids), self._last_s - self._first_s
        return WrittenText(
            text=self._text(),
            prompt_tokens=prompt_tokens,
            tokens=count,
            first_s=self._first_s - self._began_s,
            tokens_per_s=(count - 1) / spent_s if count > 1 and spent_s > 0 else None,
        )

    def _text(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=True))

    def _tell(self, text: str) -> None:
        if len(text) > self._told:
            self._on_text(text[self._told :])
            self._told = len(text)


def compute_beside_reading() -> None:
    """Half of the processors compute in this process from here on: experts are read by another thread meanwhile, and
    products with one row are memory's pace anyway, which threads that wait for each other only share."""
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))


def writer_of_checkpoint(
    folder: Path,
    *,
    dtype: str = AS_KEPT,
    tokenizer: Path | None = None,
    kept_bytes: int = 0,
    told: Told = lambda _: None,
) -> Writer:
    """What the checkpoint in `folder` writes; ConfigError says why it cannot be used. `tokenizer`: of that folder.

    `kept_bytes`: of experts that stay in memory.
    """
    found = inspect_checkpoint(folder)
    cut = layout(found.config, FROZEN)
    blocks = dict(checkpoint_blocks(found, cut))
    model = on_demand_model(cut, blocks, _computed(dtype, found.dtype), kept_bytes=kept_bytes, told=told)
    if (folder / _GENERATION_FILE).is_file():
        _take_generation(model, folder)
    return Writer(model, _tokenizer_in(tokenizer or folder), folder, found.remarks)


def writer_of_blocks(
    cut: Layout,
    blocks: Mapping[BlockId, Mapping[str, Any]],
    companions: Companions,
    name: object,
    *,
    dtype: str = AS_KEPT,
    tokenizer: Path | None = None,
    kept_bytes: int = 0,
    told: Told = lambda _: None,
) -> Writer:
    """What these blocks write, cut as in residency frozen; `companions` has the tokenizer, as an export would."""
    model = on_demand_model(cut, blocks, _computed(dtype, "fp32"), kept_bytes=kept_bytes, told=told)
    with tempfile.TemporaryDirectory(prefix="barnraise-sample-") as scratch:
        beside = Path(scratch)
        config_from_json(cut.config_json).save_pretrained(beside)
        write_companions(export_companions(companions, cut.config_json), beside)
        if (beside / _GENERATION_FILE).is_file():
            _take_generation(model, beside)
        return Writer(model, _tokenizer_in(tokenizer or beside), name)


def _computed(dtype: str, kept: str) -> torch.dtype:
    if dtype == AS_KEPT:
        return torch.bfloat16 if kept == "bf16" else torch.float32
    return checked_dtype(dtype)


def _take_generation(model: Any, folder: Path) -> None:
    try:
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{folder / _GENERATION_FILE} cannot be read: correct it, or take it away") from error


def _tokenizer_in(folder: Path) -> Any:
    # without any `transformers` makes an empty one of the model's kind, which would write nothing
    is_there = any((folder / name).is_file() for name in (TOKENIZER_FILE, *OTHER_FORMATS))
    try:
        if not is_there:
            raise OSError
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} has no tokenizer that can be read: put the model's tokenizer.json there, or name the folder "
            "that has it with --tokenizer"
        ) from error


def _prompt_ids(tokenizer: Any, config: Any, prompt: str, name: object) -> Tensor:
    """Ids [1, T] to go on from, at least one."""
    readable = prompt.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace")
    ids = list(tokenizer(readable)["input_ids"]) if readable else []
    if not ids:
        named = (tokenizer.bos_token_id, tokenizer.eos_token_id, config.bos_token_id, config.eos_token_id)
        flat = (one for token in named for one in (token if isinstance(token, list) else [token]))
        first = next((token for token in flat if token is not None), None)
        if first is None:
            raise ConfigError(
                f"the tokenizer in {name} makes no token of the prompt {prompt!r:.40}, and has none that begins or "
                "ends a text: give a longer --prompt"
            )
        ids = [first]
    if max(ids) >= config.vocab_size:
        raise ConfigError(f"{name}: the tokenizer has id {max(ids)}, outside the model's {config.vocab_size}")
    return torch.tensor([ids], dtype=torch.long)

"""Checkpoints whose weights are quantised: which are dequantised while they are read, and which are refused by name.

Decides by what config.json and the weights' headers say. Touches nothing. What is taken is what `transformers` itself
dequantises with nothing else installed and no GPU (its `Fp8Dequantize` and `Mxfp4Dequantize`).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from protocol.errors import ConfigError
from protocol.text import printable

_FP8: Final = ("quantizer_finegrained_fp8", "FineGrainedFP8HfQuantizer", "FineGrainedFP8Config")
DEQUANTISED: Final[Mapping[str, tuple[str, str, str]]] = {
    "fp8": _FP8,
    "mxfp8": _FP8,
    "mxfp4": ("quantizer_mxfp4", "Mxfp4HfQuantizer", "Mxfp4Config"),
}
"""`quant_method` of config.json to the module, the quantiser and the configuration of `transformers` for it."""
_WORDS: Final = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
}
_SUFFIXES: Final = (".qweight", ".qzeros", ".g_idx", ".weight_packed", ".weight.absmax", ".SCB")
"""Of names that only quantised weights have: GPTQ's and AWQ's, compressed-tensors', bitsandbytes'."""
WAY_OUT: Final = (
    f"{', '.join(DEQUANTISED)} are dequantised on the way in, others are not: take the checkpoint that it was made from"
)


def quantiser_of(config: Any, folder: Path, names: Iterable[str]) -> Any:
    """The quantiser of `transformers` for a checkpoint that it can dequantise; None for one that is not quantised.

    ConfigError names a method that is not read, or, where config.json says nothing, a tensor among `names` that only
    quantised weights have.
    """
    said: Any = getattr(config, "quantization_config", None)
    if not said:
        _refuse_quantised_names(names, folder)
        return None
    values = dict(said) if isinstance(said, Mapping) else said.to_dict()
    method = str(values.get("quant_method") or "an unnamed method")
    if method not in DEQUANTISED:
        named = _WORDS.get(method, printable(method)[:40])
        raise ConfigError(f"the weights in {folder} are quantised by {named}: {WAY_OUT}")
    module, quantiser, configuration = DEQUANTISED[method]
    try:
        made = getattr(importlib.import_module("transformers"), configuration).from_dict(values)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{folder}/config.json: its quantization_config cannot be read ({error})") from error
    made.dequantize = True
    maker: Any = getattr(importlib.import_module(f"transformers.quantizers.{module}"), quantiser)
    return maker(made, pre_quantized=True)


def _refuse_quantised_names(names: Iterable[str], folder: Path) -> None:
    for name in names:
        if name.endswith(_SUFFIXES):
            raise ConfigError(f"the weights in {folder} are quantised ({name:.80}): {WAY_OUT}")

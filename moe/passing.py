"""What passes through a shard while it is trained: activations, a chunk of logits, and what backward makes for a while.

Decides nothing; it counts what autograd saves for a layer as `transformers` writes one: an upper estimate, held against
what is really saved and against a process's memory (tests/moe/test_planner.py, tests/worker/test_planned_memory.py).
Layers that are no attention (recurrent, convolutional) are counted as if they were. Touches nothing.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from moe.head import tokens_at_once
from moe.layout import FP32_BYTES, Layout
from moe.skeleton import model_class
from protocol.allocator import MAPPED_BYTES, SMALL_MAPPED_BYTES

_LOGITS: Final = 2
"""Times that a chunk's logits are there: the products, and their shares, which become the gradient."""
_SCALED: Final = frozenset({"logits_scaling", "logit_scale", "final_logit_softcapping", "lm_head_multiplier"})
"""Keys of models that make something else of their logits, which is there as well."""
_SCORES: Final = 3
"""Times that a layer's attention is there, for each head and pair of tokens, where a class knows no fused one."""


_FREE: Final = {False: 1.3, True: 0.65}
"""Between pieces that are in use lie free ones that fit nothing, as a share of what forward keeps or, recomputed, would
keep: measured at 16 to 1,024 tokens, from 0.6 on (docs/decisions/0053)."""


class _OfLayer(NamedTuple):
    """Bytes of one layer."""

    attention: int
    """Kept of attention, norms and the residual stream."""
    experts: int
    """Kept of experts."""
    dense: int
    """Kept of what is there in place of experts."""
    largest: int
    """Of what there is beside, while its gradient is taken."""
    piece: int
    """Of the largest tensor of experts."""


def activation_bytes(
    layout: Layout,
    tokens: int,
    compute_bytes: int = FP32_BYTES,
    *,
    recomputed: bool = False,
    sequence_length: int = 0,
    added_bytes: tuple[int, int] = (0, 0),
) -> int:
    """Upper estimate of what forward keeps for backward, and of the largest passing tensors, for so many tokens.

    `added_bytes`: of gradients that are made beside those to which they are added, the head's and the largest other.
    """
    values = layout.config_json
    layers, sparse = values["num_hidden_layers"], layout.expert_layers
    layer = _layer(layout, tokens, compute_bytes, sequence_length or tokens)
    logits = head_bytes(layout, tokens) + added_bytes[0]
    one = layer.attention + max(layer.experts, layer.dense)
    if recomputed:
        inputs = layers * tokens * values["hidden_size"] * FP32_BYTES
        return int(inputs + max(one + layer.largest + added_bytes[1], logits))
    kept = layers * layer.attention + sparse * layer.experts + (layers - sparse) * layer.dense
    return int(kept + max(layer.largest + added_bytes[1], logits))


def kept_by_library(
    layout: Layout,
    tokens: int,
    compute_bytes: int,
    sequence_length: int,
    *,
    recomputed: bool = False,
    given_back: bool = False,
) -> int:
    """Bytes that a C library keeps on a CPU of pieces that were dropped (protocol.allocator), at most: `_FREE` of what
    forward keeps in such pieces.
    """
    layer = _layer(layout, tokens, compute_bytes, sequence_length)
    piece = SMALL_MAPPED_BYTES if given_back else MAPPED_BYTES
    attention = layer.attention if tokens * layout.config_json["hidden_size"] * FP32_BYTES <= piece else 0
    experts = layer.experts if layer.piece <= piece else 0
    whole = layout.config_json["num_hidden_layers"] * attention + layout.expert_layers * experts
    return int(_FREE[recomputed] * whole)


def head_bytes(layout: Layout, tokens: int) -> int:
    """Of a chunk of so many tokens' logits, as often as they are there."""
    times = _LOGITS + any(layout.config_json.get(key) for key in _SCALED)
    return times * _logits_bytes(layout, min(tokens, tokens_at_once(layout.config_json["vocab_size"])))


def sequences_at_once(layout: Layout, wanted: int, sequence_length: int, memory_bytes: int) -> int:
    """How many sequences go through a whole fp32 model at a time where nothing is kept for backward: `wanted`, or as
    few as `memory_bytes` hold what passes of, by the same upper estimate; one at the least.
    """
    layer = _layer(layout, sequence_length, FP32_BYTES, sequence_length)
    # One layer's tensors at a time, and at the end a chunk of logits and their log-softmax, whatever comes before them.
    logits = 2 * _logits_bytes(layout, min(sequence_length, tokens_at_once(layout.config_json["vocab_size"])))
    one = layer.attention + max(layer.experts, layer.dense) + layer.largest
    return max(1, min(wanted, memory_bytes // max(one, logits)))


def _layer(layout: Layout, tokens: int, compute_bytes: int, sequence_length: int) -> _OfLayer:
    values: Any = layout.config_json
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    # Of heads whose queries and keys have a part that is rotated and one that is not, both parts, and for all heads.
    halves = (values.get("qk_nope_head_dim") or 0) + (values.get("qk_rope_head_dim") or 0)
    head_dim = halves or values.get("head_dim") or hidden // heads
    queries = heads * head_dim
    keys = (heads if halves else values.get("num_key_value_heads") or heads) * head_dim
    # Both norms' inputs, what they are scaled to, their outputs: six, in fp32. Queries and keys before and after their
    # norm and after rotation, values, what comes out of attention, and once more with heads side by side.
    attention = tokens * (6 * hidden * FP32_BYTES + (5 * queries + (6 if halves else 4) * keys) * compute_bytes)
    if not model_class(layout.family.model_type)._supports_sdpa:
        attention += _SCORES * tokens * sequence_length * heads * FP32_BYTES
    width, slots = values[layout.family.expert_width], tokens * values["num_experts_per_tok"]
    # A token's copy for each expert, the two projections, what the gate makes of them twice, the output.
    experts = slots * (2 * hidden + 4 * width) * compute_bytes
    shared = (values.get("n_shared_experts") or values.get("num_shared_experts") or 0) * width
    shared = shared or values.get("shared_expert_intermediate_size") or 0
    experts += tokens * 4 * shared * compute_bytes
    dense = tokens * 4 * (values.get("intermediate_size") or width) * compute_bytes
    piece = slots * max(hidden, 2 * width) * compute_bytes
    largest = max(slots * (2 * hidden + 3 * width), tokens * (2 * queries + 2 * keys)) * compute_bytes
    return _OfLayer(int(attention), int(experts), int(dense), int(largest), int(piece))


def _logits_bytes(layout: Layout, tokens: int) -> int:
    return int(tokens * layout.config_json["vocab_size"] * FP32_BYTES)

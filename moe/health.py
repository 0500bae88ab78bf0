"""How a model's experts are doing: who gets tokens, who is a copy of whom, how sure the routers are.

Decides what is counted and what counts as ill; touches nothing. Holds always: every token is counted once in each
layer and for each of its top-k experts, so the counts of a layer sum to tokens x top-k; the model is left as it was.

- **load**: an expert's share of its layer's routed tokens, times the number of experts: 1.0 is an even share.
- **token entropy**: of a token's router distribution (its scores, made to sum to 1), averaged over tokens, by
  log(experts): 1 is a router that does not choose. **Load entropy**: of the load itself, by log(experts): 1 is an even
  load, whatever single tokens do.
- **cosine** between the weights of two experts of a layer. Of independent random weights it is 0 on average with a
  standard deviation of 1/sqrt(weights of an expert). An expert whose hidden units were only reordered is not found.
- **drift**: what changes when a shard holds only some columns and the others are absent, against full routing of the
  same tokens. The divergence is KL(full || absent) of the router's distributions, both renormalised over the held
  columns: 0 in the first layer with experts, where both see the same input. In frozen residency nothing drifts.

Shapes: N sequences of T+1 tokens, S tokens of a batch, E experts, K a token, D held columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean
from typing import Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moe.config import config_to_json
from moe.families import family_named
from moe.findings import DeadExpert, DuplicateExperts, ExpertHealth, LayerHealth, RoutingDrift
from moe.full import mean_and_error, sequence_losses
from moe.routing import RouterTap, Routing, in_module, routers, why_not_within
from moe.selection import layer_of

DEAD_LOAD: Final = 0.05
"""Load below which an expert is dead: it sees, and learns from, a twentieth of its even share."""
DUPLICATE_COSINE: Final = 0.9
"""Cosine above which two experts are one: random ones of the smallest preset (36,864 weights) stay below 0.03."""

OnSequences = Callable[[int, int], None]
"""Called with the sequences done and all of them."""


def examine(
    model: PreTrainedModel,
    tokens_NT1: Tensor,
    *,
    batch: int,
    column_sets: Iterable[Iterable[int]] = (),
    progress: OnSequences | None = None,
) -> ExpertHealth:
    """Run `tokens_NT1` through the model, once and then once for each of `column_sets`, and judge its experts.

    ConfigError for a set of columns that no `absent` shard could hold; without any, drift is not measured.
    """
    values = config_to_json(model.config)
    sets = tuple(tuple(sorted(columns)) for columns in column_sets)
    no_drift = "" if sets else "no columns were taken away"
    if sets and (why := why_not_within(values)):
        sets, no_drift = (), why
    counts = _Counts(model, int(values["num_experts"]), sets, family_named(model.config.model_type).scores_of(values))
    for chunk_BT1 in torch.split(tokens_NT1, max(1, batch)):
        counts.run(model, chunk_BT1)
        if progress is not None:
            progress(counts.sequences, tokens_NT1.shape[0])
    return counts.judged(model, int(values["num_experts_per_tok"]), no_drift)


def usual_held(columns: int, top_k: int) -> int:
    """Columns that a shard holds where nobody said: half of them, and top-k at least."""
    return max(top_k, columns // 2)


def column_sets(columns: int, held: int) -> tuple[tuple[int, ...], ...]:
    """The fewest sets of `held` neighbouring columns that cover all; the last one begins again at 0 where it must."""
    held = min(max(1, held), columns)
    return tuple(tuple(sorted((start + place) % columns for place in range(held))) for start in range(0, columns, held))


class _Counts:
    """Sums over batches: by layer for full routing, by set of columns and layer for absent."""

    def __init__(self, model: PreTrainedModel, experts: int, sets: tuple[tuple[int, ...], ...], scores: str) -> None:
        layers = routers(model)
        self._scores = scores
        self._experts = experts
        self._sets = sets
        self._tokens = 0
        self._routed = {layer: torch.zeros(experts, dtype=torch.int64) for layer in layers}
        self._entropy = dict.fromkeys(layers, 0.0)
        self._changed = dict.fromkeys(layers, 0.0)
        self._kl = dict.fromkeys(layers, 0.0)
        self._losses: list[Tensor] = []
        self._gaps: list[Tensor] = []
        self.sequences = 0

    @torch.inference_mode()
    def run(self, model: PreTrainedModel, tokens_BT1: Tensor) -> None:
        """Count one batch."""
        count = tokens_BT1.shape[0]
        with RouterTap(model) as tap:
            losses_B = sequence_losses(model, tokens_BT1, count)
            full = tap.take()
        for layer, routing in full.items():
            self._routed[layer] += torch.bincount(routing.chosen.flatten(), minlength=self._experts).cpu()
            self._entropy[layer] += _entropy_sum(routing.logits, self._scores)
        self._losses.append(losses_B)
        self._tokens += count * (tokens_BT1.shape[1] - 1)
        self.sequences += count
        gaps = []
        for held in self._sets:
            with RouterTap(model, held=held) as tap:
                gaps.append(sequence_losses(model, tokens_BT1, count) - losses_B)
                absent = tap.take()
            for layer in full:
                self._changed[layer] += _changed_count(full[layer], absent[layer])
                self._kl[layer] += _kl_sum(full[layer], absent[layer], held, self._scores)
        if gaps:
            self._gaps.append(torch.stack(gaps).mean(dim=0))

    def judged(self, model: PreTrainedModel, top_k: int, no_drift: str) -> ExpertHealth:
        """The verdict on everything that was counted."""
        loss, loss_se = mean_and_error(torch.cat(self._losses))
        cosines, weights = _cosines(model)
        layers = tuple(self._layer(layer, top_k, cosines[layer]) for layer in self._routed)
        return ExpertHealth(
            tokens=self._tokens,
            loss=loss,
            loss_se=loss_se,
            columns=self._experts,
            top_k=top_k,
            column_load=tuple(fmean(loads) for loads in zip(*(one.load for one in layers), strict=True)),
            layers=layers,
            dead=tuple(
                DeadExpert(layer=one.layer, column=column, load=load)
                for one in layers
                for column, load in enumerate(one.load)
                if load < DEAD_LOAD
            ),
            duplicates=tuple(
                DuplicateExperts(layer=one.layer, columns=(a, b), cosine=one.cosine[a][b])
                for one in layers
                for b in range(self._experts)
                for a in range(b)
                if one.cosine[a][b] > DUPLICATE_COSINE
            ),
            dead_load=DEAD_LOAD,
            duplicate_cosine=DUPLICATE_COSINE,
            random_cosine=1.0 / math.sqrt(weights),
            drift=self._drift() if self._sets else None,
            no_drift=no_drift,
        )

    def _layer(self, layer: int, top_k: int, cosine_EE: Tensor) -> LayerHealth:
        routed_E, experts = self._routed[layer], self._experts
        share_E = routed_E.double() / (self._tokens * top_k)
        return LayerHealth(
            layer=layer,
            routed=tuple(int(count) for count in routed_E),
            load=tuple(float(share) * experts for share in share_E),
            token_entropy=_normalised(self._entropy[layer] / self._tokens, experts),
            load_entropy=_normalised(float(torch.special.entr(share_E).sum()), experts),
            cosine=tuple(tuple(float(value) for value in row) for row in cosine_EE),
        )

    def _drift(self) -> RoutingDrift:
        seen = self._tokens * len(self._sets)
        changed = tuple(count / seen for count in self._changed.values())
        kl = tuple(total / seen for total in self._kl.values())
        gap, gap_se = mean_and_error(torch.cat(self._gaps))
        return RoutingDrift(
            column_sets=self._sets,
            changed=fmean(changed),
            changed_by_layer=changed,
            kl=fmean(kl),
            kl_by_layer=kl,
            loss_gap=gap,
            loss_gap_se=gap_se,
        )


def _log_shares(logits_SE: Tensor, scores: str) -> Tensor:
    """Logarithms of what a router's scores of these experts are when they sum to 1."""
    logits_SE = logits_SE.double()
    if scores == "sigmoid":
        logits_SE = torch.nn.functional.logsigmoid(logits_SE)
    elif scores == "sqrtsoftplus":
        logits_SE = torch.nn.functional.softplus(logits_SE).log() / 2
    return logits_SE.log_softmax(dim=-1)


def _entropy_sum(logits_SE: Tensor, scores: str) -> float:
    """Sum over tokens of the entropy of their router distribution, nats."""
    return float(torch.special.entr(_log_shares(logits_SE, scores).exp()).sum())


def _normalised(entropy: float, experts: int) -> float:
    return entropy / math.log(experts) if experts > 1 else 1.0


def _changed_count(full: Routing, absent: Routing) -> float:
    """Tokens whose experts, in whatever order, are not the same."""
    before_SK, after_SK = full.chosen.sort(dim=-1).values, absent.chosen.sort(dim=-1).values
    return float((before_SK != after_SK).any(dim=-1).sum())


def _kl_sum(full: Routing, absent: Routing, held: Sequence[int], scores: str) -> float:
    """Sum over tokens of KL(full || absent), both renormalised over the held columns, nats."""
    full_SD = _log_shares(full.logits[:, list(held)], scores)
    absent_SD = _log_shares(absent.logits[:, list(held)], scores)
    return float((full_SD.exp() * (full_SD - absent_SD)).sum())


@torch.inference_mode()
def _cosines(model: PreTrainedModel) -> tuple[dict[int, Tensor], int]:
    """Cosine matrix [E, E] of each layer's experts, fp64 on the CPU, and the weights that an expert has."""
    experts = int(config_to_json(model.config)["num_experts"])
    products: dict[int, list[Tensor]] = {}
    weights: dict[int, int] = {}
    for layer, flat_EP in _flat_matrices(model, experts):
        products.setdefault(layer, []).append((flat_EP @ flat_EP.T).double())
        weights[layer] = weights.get(layer, 0) + flat_EP.shape[1]
    found = {}
    for layer, each_EE in products.items():
        products_EE = torch.stack(each_EE).sum(dim=0).cpu()
        norms_E = products_EE.diagonal().sqrt()
        # An expert of zeros is like nothing, itself included; NaN stays NaN.
        scale_EE = norms_E.outer(norms_E)
        found[layer] = products_EE / scale_EE.masked_fill(scale_EE == 0, 1.0)
    return found, weights[max(weights)]


def _flat_matrices(model: PreTrainedModel, experts: int) -> Iterator[tuple[int, Tensor]]:
    """Layer and [E, P] fp32 of every matrix that all experts of a layer have, one at a time."""
    family = family_named(model.config.model_type)
    matrices = tuple(part.suffix for part in family.experts if part.matrices)
    for name, tensor in model.named_parameters():
        if name.endswith(matrices):
            path, leaf = in_module(family, name)
            apart = getattr(model.get_submodule(path), "frozen", {}).get(leaf)
            if apart is not None:  # they lie elsewhere (`moe.on_demand`)
                flat_EP = torch.stack([apart.values(one, one + 1).reshape(-1) for one in range(experts)])
            else:
                flat_EP = tensor.reshape(experts, -1)
            yield layer_of(name), flat_EP.float()

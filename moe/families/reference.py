"""`docs/families.md` from the table: what can be trained, how, in which variants, and what cannot and why.

    python -m moe.families.reference            writes the page
    python -m moe.families.reference --check    exit code 1 where the page is another

Decides how the page reads; what is on it stands in the rows, and what their smallest models say of each variant.
Touches the page alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is loaded: building a configuration asks nobody

from moe.families import FAMILIES, Family
from moe.families.micro import micro_values
from moe.families.not_yet import NOT_YET
from moe.families.variants import VARIANTS, variant
from protocol.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
_HEAD: Final = """# Model families

<!-- Made by `python -m moe.families.reference`; `make lint` says when it is stale. -->

{rows} of the {all} causal language models of `transformers` 5.23 with routed experts can be cut into trunk and expert
columns, made, imported and exported. Each is a row of data in `moe/families`
([why](decisions/0018-families-as-data.md), [which keys](decisions/0037-keys-from-the-classes.md));
`tests/moe/test_families.py` runs one contract on every row: slice and merge to the bit, export that `transformers`
opens alone without a missing or a surplus key and with the same logits, a closed configuration that means what it says.
`tests/moe/test_family_shards.py` holds logits and gradients of a frozen shard against the whole model's,
`tests/simulator/test_family_runs.py` trains two rounds of each and computes a lease again to the bit, and
`tests/simulator/test_family_processes.py` (`make soak`) trains six that differ most by real processes.

- **absent**: whether a shard can do without the columns that it does not hold; where it cannot, they are frozen ones.
  *groups*: the held columns must come equally from each group that the router chooses from.
- **gates**: what scores a router makes of its logits, and whether a token's gates are made to sum to one.
- **evened by**: what keeps the load even. *loss*: the class's own balance loss from router logits. *our loss*: the
  same one, which the class does not have, with a `router_aux_loss_coef` of ours. *bias*: a vector that is added to
  scores for choosing only, which no gradient reaches.
- **keys**: how many there are in the closed form of its configuration.

"""
_VARIANTS: Final = """
## Variants

*yes* is exact: the model that is cut, put together again and computed is to the bit the one that `transformers` builds.
*own* marks a family whose models are of that kind as they come.

"""
_EVERYWHERE: Final = """
For every family alike:

| | |
|---|---|
| weights in bf16, fp16, fp32, in one file or many | exact: blocks are fp32, which holds each of them |
| tied, but with an output head of its own in the files | exact: trained and exported as a tensor of its own, and told |
| weights for guessing several tokens ahead (`mtp`) | left out, as `transformers` does at load, and told |
| rotary embeddings of kind `llama3`, `proportional` | exact where the class has them |
| rotary embeddings of kind `dynamic`, `longrope` | refused by name: the sequences decide |
| dropout, noise in routers | refused by name: a lease must be replayable |
| a width that is no multiple of 8, more than 256 layers or 131,072 experts in all | refused by name |
| code of its own (`auto_map`) | never run: the class of `transformers` is taken, or the architecture is refused |
"""
_NOT: Final = """
## Not yet

| `model_type` | why |
|---|---|
"""


def page() -> str:
    """The whole of docs/families.md."""
    parts = [_HEAD.format(rows=len(FAMILIES), all=len(FAMILIES) + len(NOT_YET))]
    parts.append("| `model_type` | class | absent | gates | evened by | keys |\n|---|---|---|---|---|--:|\n")
    parts += [_row(family) for family in sorted(FAMILIES.values(), key=lambda one: one.model_type)]
    parts.append(_VARIANTS)
    parts.append(f"| `model_type` | {' | '.join(VARIANTS)} |\n|---|{'---|' * len(VARIANTS)}\n")
    refusals: list[str] = []
    for family in sorted(FAMILIES.values(), key=lambda one: one.model_type):
        cells = [_cell(family, name, refusals) for name in VARIANTS]
        parts.append(f"| `{family.model_type}` | {' | '.join(cells)} |\n")
    parts.append("\nRefused, with these words:\n\n")
    parts += [f"{number}. {why}\n" for number, why in enumerate(refusals, 1)]
    parts += [_EVERYWHERE, _NOT, *(f"| `{name}` | {why} |\n" for name, why in NOT_YET.items())]
    return "".join(parts)


def _row(family: Family) -> str:
    values = micro_values(family)
    grouped = family.groups is not None
    absent = "no" if family.why_not_absent(values) else "by groups" if grouped else "yes"
    scores = f"`{family.scores}`" if family.scores in family.keys else family.scores
    summed = family.renormalises if isinstance(family.renormalises, bool) else f"`{family.renormalises}`"
    gates = f"{scores}, {'sum to one' if summed is True else 'as they are' if summed is False else summed}"
    losses = {"class": ["loss"], "ours": ["our loss"], "none": []}[family.balance]
    evened = " and ".join([*losses, *(["bias"] if family.selection_bias else [])]) or "nothing"
    return f"| `{family.model_type}` | {family.class_name} | {absent} | {gates} | {evened} | {len(values) - 1} |\n"


def _cell(family: Family, name: str, refusals: list[str]) -> str:
    try:
        values = variant(family, name)
    except ConfigError as error:
        why = str(error)
        if why not in refusals:
            refusals.append(why)
        return f"no ({refusals.index(why) + 1})"
    return "own" if name == "window" and values == micro_values(family) else "yes"


def main(arguments: list[str]) -> int:
    """Write the page, or with `--check` compare it; the process's exit code."""
    made = page()
    if "--check" not in arguments:
        PAGE.write_text(made, "utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text("utf-8") == made:
        return 0
    print("docs/families.md is stale: python -m moe.families.reference", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

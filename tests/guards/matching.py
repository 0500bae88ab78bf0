"""Whether a piece of syntax is what a pattern says, and what the pattern's local variables are called there.

Decides nothing about guards. In a pattern `_` is any expression, `...` among a call's arguments any further ones, and a
name that the module does not bind (so, a local variable's) any other such name, the same one throughout.
"""

from __future__ import annotations

import ast
import builtins
import copy
from dataclasses import dataclass
from typing import TypeVar

DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Code = TypeVar("Code", bound=ast.AST)
_GIVEN = {*dir(builtins), "self", "cls"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """How names are compared."""

    of_module: frozenset[str]
    as_written: bool = False
    """Local variables, too, are called what the pattern says."""

    def is_local(self, name: str) -> bool:
        """Whether it is a local variable's."""
        return name not in self.of_module and name not in _GIVEN


def bound_in(tree: ast.Module) -> frozenset[str]:
    """The names that a module binds at its top level."""
    names: set[str] = set()
    for node in tree.body:
        for part in (
            ast.walk(node) if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else [node]
        ):
            if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(part.name)
            elif isinstance(part, ast.alias):
                names.add((part.asname or part.name).partition(".")[0])
            elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                names.add(part.id)
    return frozenset(names)


def matches(pattern: ast.AST, node: object, names: Names) -> dict[str, str] | None:
    """What the pattern's local variables are called in `node`; None where it is something else."""
    found: dict[str, str] = {}
    return found if _same(pattern, node, names, found) else None


def filled(code: Code, found: dict[str, str]) -> Code:
    """A copy of `code` with its local variables called what they are called where it goes."""
    code = copy.deepcopy(code)
    for part in ast.walk(code):
        if isinstance(part, ast.Name):
            part.id = found.get(part.id, part.id)
    return code


def _same(pattern: object, node: object, names: Names, found: dict[str, str]) -> bool:
    if isinstance(pattern, ast.Name):
        return _same_name(pattern, node, names, found)
    if isinstance(pattern, list):
        if not isinstance(node, list) or len(pattern) != len(node):
            return False
        return all(_same(one, other, names, found) for one, other in zip(pattern, node, strict=True))
    if not isinstance(pattern, ast.AST):
        return type(pattern) is type(node) and pattern == node
    if type(pattern) is not type(node):
        return False
    if isinstance(pattern, ast.Call) and isinstance(node, ast.Call):
        return _same(pattern.func, node.func, names, found) and _same_arguments(pattern, node, names, found)
    fields = [field for field in pattern._fields if field not in {"ctx", "kind", "type_comment"}]
    return all(_same(getattr(pattern, field), getattr(node, field), names, found) for field in fields)


def _same_name(pattern: ast.Name, node: object, names: Names, found: dict[str, str]) -> bool:
    name = pattern.id
    if name == "_":
        return isinstance(node, ast.expr)
    if not isinstance(node, ast.Name) or type(pattern.ctx) is not type(node.ctx):
        return False
    if not names.is_local(name) or names.as_written:
        return node.id == name
    if not names.is_local(node.id) or (name not in found and node.id in found.values()):
        return False
    return found.setdefault(name, node.id) == node.id


def _same_arguments(pattern: ast.Call, node: ast.Call, names: Names, found: dict[str, str]) -> bool:
    open_ended = any(_is_rest(one) for one in pattern.args)
    if not _same_sequence(pattern.args, node.args, names, found):
        return False
    given = {one.arg: one.value for one in node.keywords}
    wanted = {one.arg: one.value for one in pattern.keywords}
    if not (wanted.keys() <= given.keys() if open_ended else wanted.keys() == given.keys()):
        return False
    return all(_same(value, given[name], names, found) for name, value in wanted.items())


def _same_sequence(pattern: list[ast.expr], given: list[ast.expr], names: Names, found: dict[str, str]) -> bool:
    if not pattern:
        return not given
    first, *rest = pattern
    if not _is_rest(first):
        return bool(given) and _same(first, given[0], names, found) and _same_sequence(rest, given[1:], names, found)
    for start in range(len(given) + 1):
        trial = dict(found)
        if _same_sequence(rest, given[start:], names, trial):
            found.update(trial)
            return True
    return False


def _is_rest(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...

"""How a guard is taken out of the product: in which function, what is looked for, and what is left.

    never("coordinator:Pace.wait", "self._left_s() < 0.0")    the `if` or `while` with this condition: never
    dropped("worker:read_lease", '_within(..., "ttl_s")')     this statement, operand, argument or element: gone
    becomes("protocol:sign", "min(left_s, _)", "left_s")      this expression: another
    planted("worker:enrol", "print(x)", after="x = f(_)")     more statements; with no `before` or `after`: first

A place is a room or module, and a qualified name in it: a function, a class, or a constant; or a room or module alone.
The file is found by that name, wherever in the room it is. What is looked for is Python, compared as syntax, so that
neither layout nor comments matter; `_` is any expression, `...` any further arguments, and a local variable's name is
any local variable (where its own name does not stand there). Always: exactly one place and one piece of code fit, or
Moved is raised.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from operator import setitem
from pathlib import Path

from tests.guards.matching import DEFINITION, Names, bound_in, filled, matches

Edit = Callable[[], object]


class Moved(Exception):
    """The product is not what the table says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One change of the product's syntax."""

    where: str
    kind: str
    what: str
    instead: str = ""
    says: str = ""
    """Words in what the `if` does, where its condition alone does not tell which one it is."""

    def told(self) -> str:
        """The cut in one line, for people and for `--resume`."""
        parts = [self.kind, self.what, self.says and f"that says {self.says!r}", self.instead and f"-> {self.instead}"]
        return f"{self.where}: {' '.join(' '.join(part.split()) for part in parts if part)}"

    def path(self, root: Path) -> Path:
        """The file under `root` that the place is in."""
        room, _, name = self.where.partition(":")
        found = [path for path in _files(root, room) if self._may_be_in(path, name)]
        if len(found) != 1:
            there = ", ".join(str(path.relative_to(root)) for path in found) or "no file"
            raise Moved(f"the guard has moved: {name or self.told()} of {room} is in {there}")
        return found[0]

    def _may_be_in(self, path: Path, name: str) -> bool:
        content = _text(path, path.stat().st_mtime_ns)
        words = name.split(".") if name else re.findall(r'"([^"]+)"', self.what)
        if not all(re.search(rf"\b{re.escape(word)}\b", content) for word in words):
            return False
        tree = _parsed(content)
        return _scope(tree, name) is not None if name else bool(_found(self, tree, tree))

    def applied(self, content: str) -> str:
        """The program of `content` without the guard, laid out anew."""
        tree = ast.parse(content)
        scope = _scope(tree, self.where.partition(":")[2])
        if scope is None:
            raise Moved(f"the guard has moved: no {self.where}")
        found = _found(self, tree, scope)
        if len(found) != 1:
            raise Moved(f"the guard has moved: {self.told()[:150]!r} fits {len(found)} pieces of code")
        found[0]()
        return ast.unparse(ast.fix_missing_locations(_Whole().visit(tree)))


def never(where: str, condition: str = "_", *, says: str = "") -> Cut:
    """The `if` or `while` with `condition` is never taken."""
    return Cut(where=where, kind="never", what=condition, says=says)


def always(where: str, condition: str = "_", *, says: str = "") -> Cut:
    """The `if` or `while` with `condition` is always taken."""
    return Cut(where=where, kind="always", what=condition, says=says)


def dropped(where: str, what: str) -> Cut:
    """A statement, an operand, an argument, an element, or (by its key) a dictionary's entry is gone."""
    return Cut(where=where, kind="dropped", what=what)


def becomes(where: str, what: str, instead: str) -> Cut:
    """One expression is another; local variables of the first may stand in the second."""
    return Cut(where=where, kind="becomes", what=what, instead=instead)


def unquoted(where: str, what: str) -> Cut:
    """One expression in a formatted string is written as it is, not as its `repr`."""
    return Cut(where=where, kind="unquoted", what=what)


def planted(where: str, statements: str, *, before: str = "", after: str = "") -> Cut:
    """More statements: around the one that is, or sets something to, the expression named, or first of all."""
    kind = "before" if before else "after" if after else "first"
    return Cut(where=where, kind=kind, what=before or after, instead=statements)


def _found(cut: Cut, tree: ast.Module, scope: ast.AST) -> list[Edit]:
    names = Names(of_module=bound_in(tree))
    return list(_edits(cut, scope, replace(names, as_written=True))) or list(_edits(cut, scope, names))


def _edits(cut: Cut, scope: ast.AST, names: Names) -> Iterator[Edit]:
    """Each way in which the cut fits into `scope`."""
    if cut.kind == "first":
        assert isinstance(scope, DEFINITION), f"{cut.where} has no statements"
        return iter([_planting(scope.body, 1 if ast.get_docstring(scope) else 0, cut.instead, {})])
    pattern = _code(cut.what)
    if cut.kind in {"never", "always"}:
        return _condition_edits(cut, scope, pattern, names)
    if cut.kind == "unquoted":
        return _unquoting_edits(scope, pattern, names)
    if cut.kind == "becomes":
        return _replacing_edits(scope, pattern, _code(cut.instead), names)
    return _list_edits(cut, scope, pattern, names)


def _condition_edits(cut: Cut, scope: ast.AST, pattern: ast.AST, names: Names) -> Iterator[Edit]:
    for node in ast.walk(scope):
        if isinstance(node, ast.If | ast.While) and matches(pattern, node.test, names) is not None:
            parts = [part for one in node.body for part in ast.walk(one) if isinstance(part, ast.Constant)]
            if cut.says in "".join(str(part.value) for part in parts):
                yield partial(setattr, node, "test", ast.Constant(cut.kind == "always"))


def _unquoting_edits(scope: ast.AST, pattern: ast.AST, names: Names) -> Iterator[Edit]:
    for node in ast.walk(scope):
        if not isinstance(node, ast.FormattedValue) or node.conversion != ord("r"):
            continue
        if matches(pattern, node.value, names) is not None:
            yield partial(setattr, node, "conversion", -1)


def _replacing_edits(scope: ast.AST, pattern: ast.AST, instead: ast.AST, names: Names) -> Iterator[Edit]:
    for node in ast.walk(scope):
        for field, value in ast.iter_fields(node):
            for index, child in enumerate(value if isinstance(value, list) else [value]):
                is_whole = isinstance(instead, ast.stmt) and isinstance(child, ast.Expr)
                found = matches(pattern, child.value if is_whole else child, names)
                if found is None or isinstance(child, ast.stmt) != isinstance(instead, ast.stmt):
                    continue
                new = filled(instead, found)
                in_list = isinstance(value, list)
                yield partial(setitem, value, index, new) if in_list else partial(setattr, node, field, new)


def _list_edits(cut: Cut, scope: ast.AST, pattern: ast.AST, names: Names) -> Iterator[Edit]:
    for node in ast.walk(scope):
        if isinstance(node, ast.Dict) and cut.kind == "dropped":
            for index, key in enumerate(node.keys):
                if key is not None and matches(pattern, key, names) is not None:
                    yield partial(_pop_both, node, index)
            continue
        for _, value in ast.iter_fields(node):
            for index, child in enumerate(value if isinstance(value, list) else []):
                said = child if isinstance(pattern, ast.stmt) else _said_by(child, cut.kind)
                found = matches(pattern, said, names)
                if found is None:
                    continue
                if cut.kind == "dropped":
                    yield partial(value.pop, index)
                elif isinstance(child, ast.stmt):
                    yield _planting(value, index + (cut.kind == "after"), cut.instead, found)


def _code(text: str) -> ast.AST:
    """The one statement, or the expression that is all of it."""
    (statement,) = ast.parse(text.strip()).body
    return statement.value if isinstance(statement, ast.Expr) else statement


def _said_by(node: object, kind: str) -> object:
    """The expression that a statement, or an element of a list, is known by."""
    known_by_value = ast.Expr if kind == "dropped" else ast.Expr | ast.Assign | ast.AnnAssign | ast.Return
    if isinstance(node, known_by_value):
        return node.value.value if isinstance(node.value, ast.Await) else node.value
    return node.iter if isinstance(node, ast.For) and kind != "dropped" else node


def _planting(body: list[ast.stmt], index: int, statements: str, found: dict[str, str]) -> Edit:
    new = [filled(one, found) for one in ast.parse(statements).body]
    return partial(setitem, body, slice(index, index), new)


def _pop_both(entries: ast.Dict, index: int) -> None:
    del entries.keys[index], entries.values[index]


class _Whole(ast.NodeTransformer):
    """Makes a program of a tree from which something was taken."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.BoolOp) and len(node.values) == 1:
            return node.values[0]
        body = getattr(node, "body", None)
        if isinstance(body, list) and not body:
            body.append(ast.Pass())
        return node


@lru_cache(maxsize=4096)
def _text(path: Path, changed_ns: int) -> str:
    return path.read_text(encoding="utf-8")


@lru_cache(maxsize=512)
def _parsed(content: str) -> ast.Module:
    return ast.parse(content)


def _files(root: Path, room: str) -> list[Path]:
    folder = root.joinpath(*room.split("."))
    module = folder.with_suffix(".py")
    return [module] if module.exists() else sorted(folder.rglob("*.py"))


def _scope(tree: ast.AST, name: str) -> ast.AST | None:
    """The function, class or constant of that qualified name."""
    if not name:
        return tree
    first, _, rest = name.partition(".")
    for node in _statements(tree):
        if isinstance(node, DEFINITION) and node.name == first:
            found = _scope(node, rest) if rest else node
            if found is not None:
                return found
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not rest and any(isinstance(target, ast.Name) and target.id == first for target in targets):
            return node
    return None


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    """Those of a scope, without those of the scopes in it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
        if not isinstance(child, DEFINITION | ast.expr):
            yield from _statements(child)

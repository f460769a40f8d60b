"""Small faults to plant in a Python module, one at a time: the mutants of `scripts/mutate.py`."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import cast

# Texts in calls of these are read by people, or by nobody.
_TALK = {"ContextVar", "TypeVar", "cast", "debug", "getLogger", "getattr", "warn", "warning"}
_NOT_BEHAVIOUR = {"__all__", "__slots__"}
_TYPE_FACTORIES = {"NewType", "ParamSpec", "TypeVar"}

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}
_NAMES = {"min": "max", "max": "min", "Exception": "BaseException", "BaseException": "Exception"}


@dataclass(frozen=True)
class _Place:
    """Where a node hangs in the tree."""

    parent: ast.AST
    field: str
    index: int | None
    statement: ast.stmt | ast.ExceptHandler
    scope: str

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


@dataclass(frozen=True)
class Mutant:
    """One fault in one file.

    Attributes:
        file: Path of the file.
        scope: Outermost function it is in; empty if it takes effect while the file is imported.
        first_line: First line of the statement it is in.
        last_line: Last line of it, or of its head.
        old: That statement as it is.
        new: That statement with the fault.
    """

    file: str
    scope: str
    first_line: int
    last_line: int
    old: str
    new: str
    tree: ast.Module
    place: _Place
    node: ast.AST
    replacement: ast.AST

    def compile(self) -> CodeType:
        """Return the code of the whole module with the fault in it."""
        self.place.put(self.replacement)
        try:
            return compile(self.tree, self.file, "exec")
        finally:
            self.place.put(self.node)


def mutants_of(file: str, source: str) -> list[Mutant]:
    """Return every mutant of a module; annotations, decorators and docstrings stay as they are."""
    tree = ast.parse(source, file)
    return [
        _mutant(file, tree, place, node, replacement)
        for node, place in _walk(tree)
        for replacement in _replacements(node, place)
    ]


def _mutant(file: str, tree: ast.Module, place: _Place, node: ast.AST, new: ast.AST) -> Mutant:
    ast.copy_location(new, node if hasattr(node, "lineno") else place.statement)
    ast.fix_missing_locations(new)
    statement = place.statement
    before = _head(statement)
    place.put(new)
    after = _head(new if statement is node else statement)
    place.put(node)
    body: list[ast.stmt] | None = getattr(statement, "body", None)
    last = body[0].lineno - 1 if body else statement.end_lineno or statement.lineno
    last = max(last, statement.lineno)
    return Mutant(file, place.scope, statement.lineno, last, before, after, tree, place, node, new)


def _head(statement: ast.AST) -> str:
    """Return a statement in one line, without the block below it."""
    lines = ast.unparse(statement).splitlines()
    return next((line for line in lines if not line.startswith("@")), "")


def _walk(tree: ast.Module) -> Iterator[tuple[ast.AST, _Place]]:
    for index, statement in enumerate(tree.body):
        yield from _visit(statement, _Place(tree, "body", index, statement, ""), "")


def _visit(node: ast.AST, place: _Place, path: str) -> Iterator[tuple[ast.AST, _Place]]:
    if _is_not_behaviour(node, place):
        return
    yield node, place
    if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        path = f"{path}.{node.name}" if path else node.name
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns", "decorator_list", "bases"}:
            continue
        scope = place.scope
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and field == "body":
            scope = scope or path
        for index, child in enumerate(_listed(value)):
            if isinstance(child, ast.AST):
                is_line = isinstance(child, (ast.stmt, ast.ExceptHandler))
                statement = child if is_line else place.statement
                at = index if isinstance(value, list) else None
                yield from _visit(child, _Place(node, field, at, statement, scope), path)


def _listed(value: object) -> list[object]:
    return list(cast("list[object]", value)) if isinstance(value, list) else [value]


def _is_not_behaviour(node: ast.AST, place: _Place) -> bool:
    """Tell types and texts from what a program does."""
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom() | ast.JoinedStr():
            return True
        case ast.ClassDef(bases=bases):
            return any("Protocol" in ast.unparse(base) for base in bases)
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if not place.scope:
            is_type = isinstance(value, (ast.Subscript, ast.BinOp)) and "[" in ast.unparse(value)
            is_union = isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr)
            return name in _NOT_BEHAVIOUR or is_type or is_union or _calls(value, _TYPE_FACTORIES)
        case ast.Constant(value=str() as text):
            # What has a space in it is read by people.
            return (
                " " in text or isinstance(place.statement, ast.Raise) or _calls(place.parent, _TALK)
            )
        case _:
            return False


def _calls(node: ast.AST, names: set[str]) -> bool:
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else ast.unparse(function)
    return name in names


def _replacements(node: ast.AST, place: _Place) -> Iterator[ast.AST]:
    if isinstance(node, ast.stmt):
        yield from _other_statements(node, place)
    elif isinstance(node, ast.expr):
        yield from _other_expressions(node, place)


def _other_statements(node: ast.stmt, place: _Place) -> Iterator[ast.AST]:
    match node:
        case ast.Return(value=ast.expr() as value):
            if not (isinstance(value, ast.Constant) and value.value in {None, True, False}):
                yield ast.Return(ast.Constant(None))
        case ast.Return() | ast.Raise() | ast.Delete() | ast.Expr() if place.scope:
            yield ast.Pass()
        case ast.Assign() | ast.AnnAssign(value=ast.expr()) if place.scope:
            yield ast.Pass()
        case ast.AugAssign(target=target, op=op, value=value):
            yield ast.Pass()
            if type(op) in _ARITHMETIC:
                yield ast.AugAssign(target, _ARITHMETIC[type(op)](), value)
        case ast.Continue():
            yield ast.Break()
        case ast.Break():
            yield ast.Continue()
        case _:
            pass


def _other_expressions(node: ast.expr, place: _Place) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(ops=ops):
            for index, op in enumerate(ops):
                for other in _COMPARISONS[type(op)]:
                    changed = copy.copy(node)
                    changed.ops = [*ops[:index], other(), *ops[index + 1 :]]
                    yield changed
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            yield ast.BinOp(left, _ARITHMETIC[type(op)](), right)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.Constant(value=value):
            yield from _other_constants(value)
        case ast.Name(id=name) if name in _NAMES and _is_called_or_caught(place):
            yield ast.Name(_NAMES[name], ast.Load())
        case _:
            pass
    if _is_condition(place) and not isinstance(node, (ast.Compare, ast.BoolOp, ast.UnaryOp)):
        yield ast.UnaryOp(ast.Not(), node)


def _other_constants(value: object) -> Iterator[ast.AST]:
    match value:
        case bool():
            yield ast.Constant(not value)
        case int() | float():
            yield ast.Constant(value + 1)
        case str():
            yield ast.Constant(value + "~")
        case _:
            pass


def _is_condition(place: _Place) -> bool:
    return place.field in {"test", "ifs"}


def _is_called_or_caught(place: _Place) -> bool:
    return place.field == "func" or isinstance(place.parent, ast.ExceptHandler)

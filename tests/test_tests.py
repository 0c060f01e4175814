"""Tests can fail: each asserts something, and nothing that holds whatever happens."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.rglob("*.py"))
CHECKS = {"raises", "warns", "fail", "gradcheck"}  # calls that fail by themselves, beside those named assert_...
EQUALITIES = {"allclose", "array_equal", "assert_close", "equal", "isclose"}


def called(node: ast.AST) -> str:
    function = node.func if isinstance(node, ast.Call) else None
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def found_in(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test")]


def asserts(function: ast.AST, helpers: set[str]) -> bool:
    nodes = list(ast.walk(function))
    names = {called(node) for node in nodes}
    return (
        any(isinstance(node, ast.Assert) for node in nodes)
        or not names.isdisjoint(CHECKS | helpers)
        or any(name.startswith("assert_") for name in names)
    )


def asserting_helpers(trees: list[ast.Module]) -> set[str]:
    """Return the names of the functions beside the tests that assert, by themselves or through others."""
    helpers, found = [node for tree in trees for node in functions(tree)], set[str]()
    while True:
        more = {node.name for node in helpers if node.name not in found and asserts(node, found)}
        if not more:
            return found
        found |= more


def same(one: ast.AST, other: ast.AST) -> bool:
    """Whether two expressions are the same and call nothing, so that they have the same value."""
    return ast.dump(one) == ast.dump(other) and not any(isinstance(node, ast.Call) for node in ast.walk(one))


def holds_always(node: ast.AST) -> bool:
    match node:
        case ast.Assert(test=ast.Constant(value=value)):
            return bool(value)
        case ast.Compare(left=left, comparators=[right]):
            return same(left, right)
        case ast.Call(args=[one, other, *_]) if called(node) in EQUALITIES:
            return same(one, other)
        case ast.BoolOp(op=ast.Or(), values=values):
            negated = [value.operand for value in values if isinstance(value, ast.UnaryOp)]
            return any(same(value, operand) for operand in negated for value in values)
    return False


def passes_over(node: ast.AST) -> bool:
    """Whether an error is let pass, so that the test passes with it and without."""
    if isinstance(node, ast.ExceptHandler):
        return all(isinstance(step, (ast.Pass, ast.Continue)) or is_text(step) for step in node.body)
    return called(node) == "suppress"


def is_text(step: ast.stmt) -> bool:
    return isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant)


def is_empty(node: ast.AST) -> bool:
    """Whether nothing is looped over or given to a test, which then never runs."""
    match node:
        case ast.For(iter=ast.List(elts=[]) | ast.Tuple(elts=[])):
            return True
        case ast.Call(args=[_, ast.List(elts=[]) | ast.Tuple(elts=[]), *_]):
            return called(node) == "parametrize"
    return False


def faults(tree: ast.Module, helpers: set[str]) -> Iterator[str]:
    """Yield what is wrong with the tests of a file, with the line."""
    for test in found_in(tree):
        if not asserts(test, helpers):
            yield f"{test.lineno}: {test.name} asserts nothing"
        for node in ast.walk(test):
            if holds_always(node):
                yield f"{node.lineno}: {ast.unparse(node)} holds always"  # type: ignore[attr-defined]
            if passes_over(node):
                yield f"{node.lineno}: {test.name} passes with the error and without"  # type: ignore[attr-defined]
            if is_empty(node):
                yield f"{node.lineno}: {test.name} goes over nothing"  # type: ignore[attr-defined]


def test_every_test_can_fail() -> None:
    trees = {path: ast.parse(path.read_text()) for path in FILES}
    assert sum(len(found_in(tree)) for tree in trees.values()) > 1000
    helpers = asserting_helpers(list(trees.values()))
    assert not [f"{path.name}:{fault}" for path, tree in trees.items() for fault in faults(tree, helpers)]


BAD = [
    "run(code)",
    "try:\n        run()\n    except ValueError:\n        pass\n    assert ready",
    "for _ in rows:\n        try:\n            run()\n        except OSError:\n            continue\n    assert ready",
    "with contextlib.suppress(ValueError):\n        run()\n    assert ready",
    "assert True",
    "assert x or not x",
    "assert len(names) > 0 and names == names",
    "assert torch.equal(x.data, x.data)",
    "for x in []:\n        assert x",
]


@pytest.mark.parametrize("body", BAD)
def test_one_that_cannot_is_found(body: str) -> None:
    tree = ast.parse(f"def test_it():\n    {body}\n")
    assert len(list(faults(tree, set()))) == 1


GOOD = [
    "check(x)",
    "with pytest.raises(ValueError):\n        run()",
    "torch.testing.assert_close(x, y)",
    "try:\n        run()\n    except ValueError as error:\n        assert str(error)",
    "assert torch.equal(chip(x), chip(x))",
    "assert x or not y",
]


@pytest.mark.parametrize("body", GOOD)
def test_one_that_can_is_not(body: str) -> None:
    tree = ast.parse(
        f"def check(x):\n    assert x\n\n\ndef through(x):\n    check(x)\n\n\ndef test_it():\n    {body}\n"
    )
    helpers = asserting_helpers([tree])
    assert helpers >= {"check", "through"} and not list(faults(tree, helpers))

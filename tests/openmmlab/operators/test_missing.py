"""Operators that are left out, and the names that mmcv asks for."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import torch
import torchvision

pytest.importorskip("mmcv.ops")

import mmcv
from mmcv import ops

from aihwkit_nabn.errors import MissingDependencyError
from aihwkit_nabn.openmmlab import operators
from aihwkit_nabn.stacks import compile_mmcv

SOURCES = sorted((Path(mmcv.__file__).parent / "ops").glob("*.py"))


def names_asked_for(source):
    """The second argument of every ``load_ext`` in a file."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "load_ext":
            assert ast.literal_eval(node.args[0]) == "_ext"
            yield from ast.literal_eval(node.args[1])


def test_every_name_that_mmcv_asks_for_is_there():
    names = {name for source in SOURCES for name in names_asked_for(source)}
    assert len(names) > 80
    assert all(callable(getattr(operators, name)) for name in names)
    assert set(operators.__all__) - {"line_nms_forward"} <= names, "mmcv knows them; only its fork knows lines"
    assert not any("refuse" in inspect.getsource(getattr(operators, name)) for name in operators.__all__)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("box_iou_rotated", lambda: ops.box_iou_rotated(torch.ones(2, 5), torch.ones(3, 5))),
        ("nms_rotated", lambda: ops.nms_rotated(torch.ones(2, 5), torch.ones(2), 0.5)),
        ("ball_query_forward", lambda: ops.ball_query(0, 1, 4, torch.ones(1, 3, 3), torch.ones(1, 2, 3))),
        ("border_align_forward", lambda: ops.BorderAlign(2)(torch.ones(1, 8, 3, 3), torch.ones(1, 9, 4))),
    ],
)
def test_a_left_out_operator_says_who_needs_it_and_what_to_do(name, call):
    with pytest.raises(MissingDependencyError) as caught:
        call()
    message = str(caught.value)
    line = call.__code__.co_firstlineno
    assert f"operator '{name}', called by {__name__}, line {line}, is" in message
    text, command = message.split("\n")  # a line of its own, to copy
    assert "needs mmcv compiled" in text and command == compile_mmcv() and "MMCV_WITH_OPS=1" in command
    assert caught.value.__cause__ is None


def test_a_left_out_operator_called_directly():
    function = operators.three_nn_forward
    assert function.__name__ == "three_nn_forward"
    with pytest.raises(MissingDependencyError, match=f"'three_nn_forward', called by {__name__}, line"):
        function(torch.ones(1), m=2)


@pytest.mark.parametrize("name", ["__wrapped__", "__file_of_nobody__", "_private"])
def test_private_names_are_no_operators(name):
    assert not hasattr(operators, name)
    with pytest.raises(AttributeError, match=name):
        getattr(operators, name)


def test_what_mmcv_reports_of_its_compiler():
    assert torchvision.__version__ in ops.get_compiler_version() and "aihwkit_nabn" in ops.get_compiler_version()
    assert ops.get_compiling_cuda_version() == "not available"

"""What mutation runs are made of: the copy without decorators is the same program."""

import ast

import pytest
import torch

from tests.mutations.__main__ import ROOT, TARGETS
from tests.mutations.plain_functions import undecorated

FILES = sorted(
    file.relative_to(ROOT)
    for target in TARGETS.values()
    for pattern in target.mutated
    for file in ROOT.glob(pattern)
)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_no_function_that_runs_keeps_a_decorator(file):
    """But static and class methods, which mutmut knows, and protocols."""
    before = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    after = ast.parse(undecorated((ROOT / file).read_text(encoding="utf-8")))
    classes = [node for node in after.body if isinstance(node, ast.ClassDef)]
    real = [node for node in classes if not any("Protocol" in ast.unparse(base) for base in node.bases)]
    functions = [
        node
        for body in (after.body, *(node.body for node in real))
        for node in body
        if isinstance(node, ast.FunctionDef)
    ]
    left = {ast.unparse(decorator) for function in functions for decorator in function.decorator_list}
    assert left <= {"classmethod", "staticmethod"}
    count = [sum(isinstance(node, ast.FunctionDef) for node in ast.walk(tree)) for tree in (before, after)]
    assert count[0] == count[1]


def test_decorators_work_below_their_functions_as_above_them():
    source = '''
import functools
import torch

calls = []

@functools.cache
@torch.no_grad()
def double(x: int) -> int:
    """Twice."""
    calls.append(torch.is_grad_enabled())
    return 2 * x

class Thing:
    @property
    def size(self) -> int:
        return 3

    @classmethod
    def make(cls) -> "Thing":
        return cls()
'''
    names = {}
    exec(compile(undecorated(source), "source", "exec"), names)
    assert (names["double"](2), names["double"](2)) == (4, 4)
    assert names["calls"] == [False]
    assert torch.is_grad_enabled()
    assert names["Thing"].make().size == 3

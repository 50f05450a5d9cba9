"""Decorators as statements below their functions: mutmut leaves decorated functions alone.

@torch.no_grad()                 def zero_(tensor):
def zero_(tensor):                   ...
    ...                          zero_ = torch.no_grad()(zero_)
"""

import ast

# Mutated by mutmut as they are.
_MUTABLE = {"staticmethod", "classmethod"}


def undecorated(source: str) -> str:
    """The same program; protocols, whose bodies are never run, stay as they are."""
    lines = source.splitlines(keepends=True)
    for function in sorted(_decorated(ast.parse(source)), key=lambda node: -node.lineno):
        name, indent = function.name, " " * function.col_offset
        value = name
        for decorator in reversed(function.decorator_list):
            value = f"{ast.unparse(decorator)}({value})"
        assert function.end_lineno is not None
        lines.insert(function.end_lineno, f"{indent}{name} = {value}\n")
        del lines[function.decorator_list[0].lineno - 1 : function.lineno - 1]
    return "".join(lines)


def _decorated(tree: ast.Module) -> list[ast.FunctionDef]:
    """Decorated functions and methods, and not those within functions."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not _is_protocol(node)]
    bodies = [tree.body, *(node.body for node in classes)]
    functions = [node for body in bodies for node in body if isinstance(node, ast.FunctionDef)]
    return [f for f in functions if any(ast.unparse(d) not in _MUTABLE for d in f.decorator_list)]


def _is_protocol(node: ast.ClassDef) -> bool:
    return any("Protocol" in ast.unparse(base) for base in node.bases)

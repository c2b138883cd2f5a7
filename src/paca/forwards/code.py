"""Tells forwards apart by their code: a class is known by what its forward does, whatever its name is."""

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from functools import cache
from typing import Any

_DIGITS = 12


@cache
def code_of(*functions: Callable[..., Any]) -> str | None:
    """Name what functions do by twelve hexadecimal digits, the same for equal code.

    transformers repeats one forward in a hundred families, and may change it in any version. Names of classes would
    miss the first and not notice the second. Comments, docstrings, decorators and layout don't count.

    Args:
        *functions: Functions written in Python; what decorators have wrapped is looked at.

    Returns:
        The digits; None where the source of one of them can't be read.
    """
    try:
        text = "\n".join(_body(inspect.unwrap(function)) for function in functions)
    except (OSError, TypeError, SyntaxError):
        return None
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _body(function: Callable[..., Any]) -> str:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    if not isinstance(tree, ast.FunctionDef):
        raise TypeError(f"{function} is no function")
    body = tree.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    return "\n".join([", ".join(argument.arg for argument in tree.args.args), *map(ast.unparse, body)])

"""Numbers with a range: the types that configuration keys and constructors are annotated with.

    def adamw(*, lr: Positive = 1e-3, betas: tuple[Fraction, Fraction] = (0.9, 0.999)): ...

One annotation serves the reader, the type checker and the check of a configuration before
torch is imported (adamwprune/targets.py reads it from the source text).
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin


@dataclass(frozen=True)
class Range:
    """An interval; `above` and `below` are exclusive, `least` and `most` inclusive."""

    above: float = -math.inf
    least: float = -math.inf
    below: float = math.inf
    most: float = math.inf

    def __contains__(self, value: float) -> bool:
        # NaN fails the first comparison, infinities fail the strict ones.
        return self.above < value < self.below and self.least <= value <= self.most

    def __str__(self) -> str:
        low = f"[{_number(self.least)}" if math.isfinite(self.least) else f"({_number(self.above)}"
        high = f"{_number(self.most)}]" if math.isfinite(self.most) else f"{_number(self.below)})"
        match low, high:
            case "(-inf", "inf)":
                return "finite"
            case _, "inf)":
                return f"{'>=' if low[0] == '[' else '>'} {low[1:]} and finite"
            case "(-inf", _:
                return f"{'<=' if high[-1] == ']' else '<'} {high[:-1]} and finite"
        if low[0] == "[" and high[-1] == "]":
            return f"from {low[1:]} to {high[:-1]}"
        return f"in {low}, {high}"


def _number(value: float) -> str:
    if value == 2**53:
        return "2^53"
    return str(int(value)) if math.isfinite(value) and float(value).is_integer() else f"{value:g}"


def shown(value: Any) -> str:
    """A value as the command line writes it."""
    return (
        {None: "null", True: "true", False: "false"}.get(value, str(value)) if _is_word(value) else str(value)
    )


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)


Finite = Annotated[float, Range()]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(least=0)]
# Half open: a beta, a dropout rate or a sparsity of 1 leaves nothing.
Fraction = Annotated[float, Range(least=0, below=1)]
UnitInterval = Annotated[float, Range(least=0, most=1)]
PositiveInt = Annotated[int, Range(least=1, most=2**53)]
NonNegativeInt = Annotated[int, Range(least=0, most=2**53)]
Seed = Annotated[int, Range(least=0, most=2**32 - 1)]


def violation(annotation: Any, value: Any) -> str | None:
    """What `value` should be where it does not fit `annotation`; None where it fits.

    Understands Annotated numbers, unions, Literal, list, tuple, dict and the plain types.
    An annotation that it does not know (a Tensor, a Module) fits everything.
    """
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *marks = get_args(annotation)
        bounds = [mark for mark in marks if isinstance(mark, Range)]
        if kind := violation(base, value):
            return " ".join((kind, *map(str, bounds)))
        return next((f"must be {mark}" for mark in bounds if value not in mark), None)
    if origin in (Union, UnionType):
        return _union_violation(get_args(annotation), value)
    if origin is Literal:
        allowed = get_args(annotation)
        return None if value in allowed else f"must be one of {', '.join(map(str, allowed))}"
    if origin in (list, tuple):
        return _sequence_violation(annotation, value)
    return _plain_violation(annotation, value)


def hint(annotation: Any, value: Any) -> str:
    """What was probably meant by a value that does not fit, as the end of a message; empty where unclear."""
    number = _percent(value)
    if number is not None and violation(annotation, number) is None:
        return f"; did you mean {number:g}?"
    if isinstance(value, float) and value.is_integer() and violation(annotation, int(value)) is None:
        return f"; write {int(value)}"
    return ""


def _percent(value: Any) -> float | None:
    """90 or '90%' as 0.9; None for what nobody gives in percent."""
    match value:
        case str() if re.fullmatch(r"\d+(\.\d+)?%", value):
            return float(value[:-1]) / 100
        case int() | float() if not isinstance(value, bool) and 2 <= value <= 100:
            return value / 100
    return None


def _union_violation(members: tuple[Any, ...], value: Any) -> str | None:
    problems = [violation(member, value) for member in members]
    if None in problems:
        return None
    words = [problem.removeprefix("must be ") for problem in problems if problem]
    return "must be " + " or ".join(sorted(words, key=lambda word: word != "null"))


def _sequence_violation(annotation: Any, value: Any) -> str | None:
    arguments = get_args(annotation)
    if not isinstance(value, list | tuple):
        return "must be a list"
    if get_origin(annotation) is tuple and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            return f"must have {len(arguments)} values"
        items: Iterable[tuple[Any, Any]] = zip(arguments, value, strict=True)
    else:
        items = ((arguments[0], item) for item in value)
    problem = next((p for kind, item in items if (p := violation(kind, item))), None)
    return None if problem is None else f"each value {problem}"


def _plain_violation(annotation: Any, value: Any) -> str | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    checks = {
        float: (is_number, "must be a number"),
        int: (is_number and isinstance(value, int), "must be an integer"),
        bool: (isinstance(value, bool), "must be true or false"),
        str: (isinstance(value, str), "must be a text"),
        NoneType: (value is None, "must be null"),
        None: (value is None, "must be null"),
    }
    fits, words = checks.get(annotation, (True, ""))
    return None if fits else words

"""The calculator: arithmetic as people write it, exact where that is possible, bounded in every direction.

The expression is parsed with :mod:`ast` and evaluated node by node; only the nodes below exist. Numbers are
Python integers and decimals of 50 digits, so that 0.1 + 0.2 is 0.3; trigonometry is done in floats.
"""

from __future__ import annotations

import ast
import decimal
import math
import operator
from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeAlias

from mux.tools.base import Tool, ToolOutput, ToolProblem
from mux.tools.decorator import tool

__all__ = ["calculator", "evaluate"]

Number: TypeAlias = int | Decimal

MAX_LENGTH = 1_000  # characters of an expression
MAX_DEPTH = 60
MAX_BITS = 14_000  # just below the 4,300 digits that Python converts to text
MAX_FACTORIAL = 1_000
SHOWN_DIGITS = 15

_CONTEXT = decimal.Context(
    prec=50,
    Emax=9_999,
    Emin=-9_999,
    traps=[decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow],
)
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "^", "\u00a0": " "})


def evaluate(expression: str) -> Number:
    """The value of an arithmetic expression.

    Raises:
        ToolProblem: it is no arithmetic, is not defined, or is too large; the message says which.
    """
    text = expression.translate(_SIGNS).strip().removesuffix("=").strip()
    if not text:
        raise _problem("The expression is empty.")
    if len(text) > MAX_LENGTH:
        raise _problem(f"The expression is too long: at most {MAX_LENGTH} characters.")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _problem(f"This is no arithmetic expression: {text[:200]!r}.") from None
    try:
        with decimal.localcontext(_CONTEXT):
            return _checked(_value(tree.body, 0))
    except ZeroDivisionError:
        raise ToolProblem("Division by zero.") from None
    except (decimal.Overflow, OverflowError):
        raise ToolProblem("The result is too large.") from None
    except (decimal.InvalidOperation, ValueError):
        raise ToolProblem("This is not defined for real numbers.") from None


def show(value: Number) -> str:
    """An integer exactly, a decimal with 15 significant digits."""
    if isinstance(value, int):
        return str(value)
    rounded = decimal.Context(prec=SHOWN_DIGITS, Emax=9_999, Emin=-9_999).plus(value)
    if rounded == 0:
        return "0"
    if -7 <= rounded.adjusted() < 21:
        text = f"{rounded:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, _, exponent = f"{rounded:e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{exponent}"


def _problem(message: str) -> ToolProblem:
    return ToolProblem(
        f"{message} Use numbers, + - * / // % **, parentheses and {_names()}.", "invalid_arguments"
    )


def _names() -> str:
    return ", ".join(sorted([*_FUNCTIONS, *_CONSTANTS]))


def _checked(value: Number) -> Number:
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise OverflowError
        return value
    if not value.is_finite():
        raise OverflowError
    return value


def _value(node: ast.expr, depth: int) -> Number:
    if depth > MAX_DEPTH:
        raise _problem("The expression is nested too deeply.")
    match node:
        case ast.Constant(value=bool() | str() | bytes() | complex() | None):
            raise _problem("Only numbers can be calculated with.")
        case ast.Constant(value=int() | float() as number):
            return _checked(number if isinstance(number, int) else Decimal(repr(number)))
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, depth + 1)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, depth + 1)
        case ast.BinOp(left=left, op=op, right=right):
            work = _OPERATORS.get(type(op))
            if work is None:
                hint = " For a power write **." if isinstance(op, ast.BitXor) else ""
                raise _problem(f"This operator is not known.{hint}")
            return _checked(work(_value(left, depth + 1), _value(right, depth + 1)))
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.Name(id=name):
            raise _problem(f"{name!r} is not known.")
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _called(name, args, depth)
        case _:
            raise _problem("Only arithmetic is possible here.")


def _called(name: str, args: list[ast.expr], depth: int) -> Number:
    low, high, function = _FUNCTIONS[name]
    if not low <= len(args) <= high or any(isinstance(a, ast.Starred) for a in args):
        raise _problem(f"{name} takes {low if low == high else f'{low} to {high}'} arguments.")
    return _checked(function(*(_value(a, depth + 1) for a in args)))


def _both(work: Callable[[Any, Any], Any]) -> Callable[[Number, Number], Number]:
    def apply(a: Number, b: Number) -> Number:
        if isinstance(a, int) and isinstance(b, int):
            if work is operator.mul and a.bit_length() + b.bit_length() > MAX_BITS + 1:
                raise OverflowError
            result: Number = work(a, b)
            return result
        return work(Decimal(a), Decimal(b))  # type: ignore[no-any-return]

    return apply


def _divide(a: Number, b: Number) -> Number:
    if b == 0:
        raise ZeroDivisionError
    if isinstance(a, int) and isinstance(b, int) and a % b == 0:
        return a // b
    return Decimal(a) / Decimal(b)


def _floor_divide(a: Number, b: Number) -> Number:
    return _divmod(a, b)[0]


def _modulo(a: Number, b: Number) -> Number:
    return _divmod(a, b)[1]


def _divmod(a: Number, b: Number) -> tuple[Number, Number]:
    """As Python does it, rounding down; Decimal alone would round towards zero."""
    if b == 0:
        raise ZeroDivisionError
    if isinstance(a, int) and isinstance(b, int):
        return divmod(a, b)
    quotient, rest = divmod(Decimal(a), Decimal(b))
    if rest and (rest < 0) != (b < 0):
        quotient, rest = quotient - 1, rest + b
    return quotient, rest


def _power(a: Number, b: Number) -> Number:
    if a == 0 and b < 0:
        raise ZeroDivisionError
    if isinstance(a, int) and isinstance(b, int) and b >= 0:
        if abs(a) > 1 and (a.bit_length() - 1) * b > MAX_BITS:  # said before the work is done
            raise OverflowError
        return a**b if abs(a) > 1 else int(a ** (b % 2 if a == -1 else min(b, 1)))
    if a == 0:
        return 1 if b == 0 else 0
    return _CONTEXT.power(Decimal(a), Decimal(b))


def _sqrt(a: Number) -> Number:
    if a < 0:
        raise ToolProblem("The square root of a negative number is not a real number.")
    if isinstance(a, int) and math.isqrt(a) ** 2 == a:
        return math.isqrt(a)
    return Decimal(a).sqrt()


def _cbrt(a: Number) -> Number:
    size = Decimal(a).copy_abs()
    root = size ** (Decimal(1) / 3)
    if round(root) ** 3 == size:
        root = Decimal(round(root))
    result = root.copy_sign(Decimal(a))
    return int(result) if result == int(result) else result


def _log(a: Number, base: Number | None = None) -> Number:
    if a <= 0 or (base is not None and (base <= 0 or base == 1)):
        raise ToolProblem("A logarithm needs a positive number, and a positive base that is not 1.")
    if base is None:
        return Decimal(a).ln()
    result = Decimal(a).log10() if base == 10 else Decimal(a).ln() / Decimal(base).ln()
    whole = round(result)
    return whole if abs(result - whole) < Decimal("1e-40") else result


def _factorial(a: Number) -> Number:
    if a != int(a) or not 0 <= a <= MAX_FACTORIAL:
        raise ToolProblem(f"factorial takes a whole number from 0 to {MAX_FACTORIAL}.")
    return math.factorial(int(a))


def _whole(function: Callable[..., int], limit: int = 5_000) -> Callable[..., Number]:
    """A function of whole numbers, each at most ``limit`` where its cost grows with them."""

    def apply(*args: Number) -> Number:
        if any(a != int(a) or not -limit <= a <= limit for a in args if limit):
            raise ToolProblem(f"{function.__name__} takes whole numbers up to {limit}.")
        if any(a != int(a) for a in args):
            raise ToolProblem(f"{function.__name__} takes whole numbers.")
        return function(*(int(a) for a in args))

    return apply


def _float(function: Callable[..., float]) -> Callable[..., Number]:
    def apply(*args: Number) -> Number:
        result = function(*(float(a) for a in args))
        if not math.isfinite(result):
            raise OverflowError
        value = Decimal(repr(result))
        if abs(value) < Decimal("1e-15") and any(abs(float(a)) >= 1 for a in args):
            return 0  # sin(pi) is 1.2e-16 only because pi was rounded
        return value

    return apply


def _round(a: Number, digits: Number = 0) -> Number:
    if digits != int(digits) or not -40 <= digits <= 40:
        raise ToolProblem("round takes a whole number of digits, at most 40.")
    result = Decimal(a).quantize(Decimal(1).scaleb(-int(digits)), rounding=decimal.ROUND_HALF_UP)
    return int(result) if digits <= 0 else result


_OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: _both(operator.add),
    ast.Sub: _both(operator.sub),
    ast.Mult: _both(operator.mul),
    ast.Div: _divide,
    ast.FloorDiv: _floor_divide,
    ast.Mod: _modulo,
    ast.Pow: _power,
}
_CONSTANTS: dict[str, Number] = {
    "pi": Decimal("3.1415926535897932384626433832795028841971693993751"),
    "e": Decimal("2.7182818284590452353602874713526624977572470936999"),
    "tau": Decimal("6.2831853071795864769252867665590057683943387987502"),
}
_MANY = 200
_FUNCTIONS: dict[str, tuple[int, int, Callable[..., Number]]] = {
    "abs": (1, 1, abs),
    "acos": (1, 1, _float(math.acos)),
    "asin": (1, 1, _float(math.asin)),
    "atan": (1, 1, _float(math.atan)),
    "atan2": (2, 2, _float(math.atan2)),
    "cbrt": (1, 1, _cbrt),
    "ceil": (1, 1, math.ceil),
    "comb": (2, 2, _whole(math.comb)),
    "cos": (1, 1, _float(math.cos)),
    "cosh": (1, 1, _float(math.cosh)),
    "degrees": (1, 1, _float(math.degrees)),
    "exp": (1, 1, lambda a: _CONTEXT.exp(Decimal(a))),
    "factorial": (1, 1, _factorial),
    "floor": (1, 1, math.floor),
    "gcd": (2, _MANY, _whole(math.gcd, 0)),
    "hypot": (2, _MANY, _float(math.hypot)),
    "lcm": (2, _MANY, _whole(math.lcm, 10**12)),
    "ln": (1, 1, _log),
    "log": (1, 2, _log),
    "log10": (1, 1, lambda a: _log(a, 10)),
    "log2": (1, 1, lambda a: _log(a, 2)),
    "max": (1, _MANY, max),
    "min": (1, _MANY, min),
    "perm": (2, 2, _whole(math.perm, 1_000)),
    "pow": (2, 2, _power),
    "radians": (1, 1, _float(math.radians)),
    "round": (1, 2, _round),
    "sin": (1, 1, _float(math.sin)),
    "sinh": (1, 1, _float(math.sinh)),
    "sqrt": (1, 1, _sqrt),
    "sum": (1, _MANY, lambda *a: sum(a)),
    "tan": (1, 1, _float(math.tan)),
    "tanh": (1, 1, _float(math.tanh)),
}


@tool(name="calculator", timeout_s=10, idempotent=True, max_output=10_000)
def _calculator(expression: str) -> ToolOutput:
    """Calculate an arithmetic expression exactly, e.g. "(3 + 4) * 2 ** 10" or "sqrt(2) * sin(pi / 4)".

    Knows + - * / // % **, parentheses, sqrt, cbrt, exp, ln, log(x, base), log10, log2, sin, cos, tan and
    their inverses (radians), degrees, radians, hypot, min, max, sum, abs, round(x, digits), floor, ceil,
    factorial, comb, perm, gcd, lcm, and the constants pi, e, tau.

    Args:
        expression: The expression. Write numbers without thousands separators, percentages as fractions.
    """
    value = show(evaluate(expression))
    return ToolOutput(value, {"expression": expression, "result": value})


def calculator() -> Tool:
    """The built-in calculator."""
    return _calculator

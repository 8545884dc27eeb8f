"""Figures of a promise in print, to four significant figures and never better than they are."""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

_FIGURES = 4


def rounded_up(value: float) -> str:
    """What was spent, or may have been: an epsilon. The text's number is no less than `value`."""
    return _rounded(value, ROUND_CEILING)


def rounded_down(value: float) -> str:
    """What protects, or is left: noise, a budget. The text's number is no more than `value`."""
    return _rounded(value, ROUND_FLOOR)


def _rounded(value: float, direction: str) -> str:
    if not math.isfinite(value):
        return str(value)
    cut = Context(prec=_FIGURES, rounding=direction).create_decimal(Decimal(value))
    return f"{float(cut):.{_FIGURES}g}"

"""What a quota, the percentage of rows to select, means in rows."""

import math
from decimal import ROUND_UP, Context, Decimal
from fractions import Fraction

from loki.errors import LokiError

_ROUNDING_ERROR = Fraction(1, 10**12)  # of computed quotas: 0.29 * 100 is 28.999999999999996 in floating point


def rows_for_quota(quota: float, rows: int) -> int:
    """`floor(quota / 100 * rows)`, in exact arithmetic on the decimal number the user wrote.

    30% of 10 rows are 3, although `0.3 * 10` is not exactly 3 in floating point; a result within 1e-12 (relative) of
    the next whole number counts as that number.

    Args:
        quota: percentage of the rows, 0 < quota <= 100.
        rows: number of rows to choose from: D of one layer, or L * D of the model.

    Raises:
        LokiError: if the quota is out of range or NaN, or too small to select a single row.
    """
    if not 0 < quota <= 100:  # false for NaN too
        raise LokiError(f"quota {quota} is out of range: give a percentage above 0 and at most 100")
    exact = Fraction(repr(float(quota))) * rows / 100
    nearest = round(exact)
    selected = nearest if abs(exact - nearest) <= exact * _ROUNDING_ERROR else math.floor(exact)
    if not selected:
        smallest = Context(prec=4, rounding=ROUND_UP).divide(Decimal(100), Decimal(rows)).normalize()
        raise LokiError(
            f"quota {quota} selects none of {rows} rows: the smallest quota that gives a row is {smallest:f}"
        )
    return selected

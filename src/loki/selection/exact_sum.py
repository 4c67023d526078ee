"""Sums of float32 numbers without any rounding, so that they do not depend on the order of the terms."""

import numpy as np
from numpy.typing import NDArray

_LOWEST_BIT = -149  # the smallest positive float32 is 2**-149
_WIDTH = 36  # bits per limb: leaves room for 2**27 terms in an int64
LIMBS = 8  # 8 * 36 bits cover 2**-149 to the largest float32, 2**128
_BLOCK_ELEMENTS = 2**18  # terms split at a time: the work space stays in the processor's cache
_BLOCK_TERMS = 2**16  # float64 adds this many 36-bit integers exactly


class ExactSum:
    """Element-wise sums of float32 arrays in fixed point: exact, hence the same in any order and grouping.

    Adding in float64 instead would let the last bit of a sum, and so the order of two rows with equal means, depend on
    how the samples were split into chunks or processes.

    Args:
        shape: shape of every term and of the sum.

    Attributes:
        limbs: int64 `[LIMBS, *shape]`; the sum is `sum_i limbs[i] * 2**(36 * i - 149)`. Two of them add element-wise.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.limbs: NDArray[np.int64] = np.zeros((LIMBS, *shape), dtype=np.int64)

    def add(self, terms: NDArray[np.float32]) -> None:
        """Add finite `terms` `[n, *shape]`, float32 (or float16).

        Raises:
            ValueError: if a term is NaN or infinite; nothing is added then.
        """
        if not np.isfinite(terms).all():
            raise ValueError("only finite numbers have a sum: a term is NaN or infinite")
        block = max(1, min(_BLOCK_TERMS, _BLOCK_ELEMENTS // max(1, self.limbs[0].size)))
        for start in range(0, len(terms), block):
            self._add_block(terms[start : start + block].astype(np.float64))

    def _add_block(self, rest: NDArray[np.float64]) -> None:
        largest = float(np.abs(rest).max(initial=0.0))
        limb = (int(np.frexp(largest)[1]) - _LOWEST_BIT - 1) // _WIDTH
        while rest.any():
            unit = 2.0 ** (_LOWEST_BIT + limb * _WIDTH)
            whole = np.trunc(rest / unit)
            self.limbs[limb] += whole.sum(axis=0).astype(np.int64)
            rest -= whole * unit
            limb -= 1

    def sort_keys(self) -> list[NDArray[np.int64]]:
        """Arrays of the sum's shape, least significant first, that order as the sums do (for `np.lexsort`)."""
        keys = []
        carry = np.zeros_like(self.limbs[0])
        for limb in self.limbs[:-1]:
            total = limb + carry
            keys.append(total & (2**_WIDTH - 1))
            carry = total >> _WIDTH
        return [*keys, self.limbs[-1] + carry]

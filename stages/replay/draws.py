"""Random numbers by address: every choice is a pure function of (seed, purpose, address).

numpy's Philox is used as a block cipher: key = (seed, purpose), counter = (block, a, b, c). Only its raw
64-bit words are read, whose values numpy guarantees for good; numpy's distributions may change
between versions and are not used. Rejected: seeding a generator for each view, which costs more
than the decision itself and makes labels depend on the order of work.
"""

import math
from enum import IntEnum

import numpy as np

_UNIT = 2.0**-53


class Purpose(IntEnum):
    """What a draw is for; two purposes never share numbers."""

    SHUFFLE = 1
    PAIR = 2
    VIEW = 3
    MIX = 4
    ORDER = 5
    NOISE = 6
    MODEL = 7
    SAMPLE = 8


class Draws:
    """The numbers that belong to one address, in order.

    One instance serves many addresses: `at` moves it, which costs about 2 µs where a new Philox costs 7.
    """

    def __init__(self, seed: int, purpose: Purpose) -> None:
        self._philox = np.random.Philox(key=np.array([seed, purpose], dtype=np.uint64))
        self._state = self._philox.state
        self._state["buffer_pos"] = 4  # nothing is buffered: the next word comes from the counter

    def at(self, a: int, b: int = 0, c: int = 0) -> "Draws":
        """Move to an address, three whole numbers from 0 to 2**64 - 1."""
        self._state["state"]["counter"][:] = (0, a, b, c)
        self._philox.state = self._state
        return self

    def words(self, count: int) -> np.ndarray:
        """The next `count` raw words, uint64 of shape (count,)."""
        return np.asarray(self._philox.random_raw(count), dtype=np.uint64)

    def uniforms(self, count: int) -> list[float]:
        """The next `count` numbers, uniform in [0, 1), as Python floats."""
        return ((self._philox.random_raw(count) >> 11) * _UNIT).tolist()

    def uniform(self) -> float:
        """The next number, uniform in [0, 1)."""
        return float((int(self._philox.random_raw()) >> 11) * _UNIT)

    def normal(self) -> float:
        """A standard normal number (Box and Muller 1958); takes two words."""
        first, second = self.uniforms(2)
        return math.sqrt(-2.0 * math.log(1.0 - first)) * math.cos(2.0 * math.pi * second)

    def beta(self, alpha: float) -> float:
        """A number from Beta(alpha, alpha), as the ratio of two gammas, for any alpha > 0."""
        first, second = self._log_gamma_variate(alpha), self._log_gamma_variate(alpha)
        return 1.0 / (1.0 + math.exp(min(second - first, 700.0)))

    def permutation(self, count: int) -> np.ndarray:
        """A permutation of 0 … count - 1, int64 of shape (count,): the order of that many words."""
        return np.argsort(self.words(count), kind="stable")

    def _log_gamma_variate(self, alpha: float) -> float:
        """Logarithm of a Gamma(alpha, 1) number (Marsaglia and Tsang 2000); logs keep tiny alphas apart."""
        shape = alpha if alpha >= 1 else alpha + 1
        boost = 0.0 if alpha >= 1 else math.log(1.0 - self.uniform()) / alpha
        d = shape - 1 / 3
        c = 1 / math.sqrt(9 * d)
        while True:
            x = self.normal()
            v = (1 + c * x) ** 3
            if v > 0 and math.log(1.0 - self.uniform()) < 0.5 * x * x + d - d * v + d * math.log(v):
                return math.log(d * v) + boost

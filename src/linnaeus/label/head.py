"""The head that is solved again after each answer: ridge regression on the classes, with exact held-out answers.

Ridge regression has its leave-one-out residuals in closed form, also for whole groups of images that must be held out
together (Cook and Weisberg 1982, "Residuals and influence in regression", section 3.6). So each labelled image is
predicted by a head that has seen all others but its near duplicates, at no more cost than solving the head. A logistic
head needs iterations for each fold: `linear_probe` takes seconds where this takes milliseconds. New images are added to
the inverse (Woodbury's identity), which costs its square where a new inverse costs its cube.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import lapack

from linnaeus.metrics.outputs import Outputs, softmax
from linnaeus.metrics.temperature import fit_temperature

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # of the ridge, for features of length 1 after centering

START = 2  # index of the first penalty

AGAIN = 1.25
"""Growth of the number of labels after which the system is inverted anew, and the penalty chosen among neighbors."""

SCALE = 8.0  # scores of 0 and 1 as logits: the prior of `fit_temperature` expects a temperature near 1

CALIBRATING = 4096  # images at most that choose the temperature

BIAS = 0.5  # the constant feature: at this length the bias is hardly penalized


@dataclass(frozen=True)
class Head:
    """A solved head."""

    weight: np.ndarray  # (width + 1, classes) float32, the bias in the last row
    penalty: float
    temperature: float
    held_out: np.ndarray  # (n, classes) float32: logits of each labelled image by a head that has not seen its group

    @property
    def held_out_probabilities(self) -> np.ndarray:
        """(n, classes) float64, calibrated."""
        return softmax(self.held_out / self.temperature)

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """(n, width) centered features of length 1 -> (n, classes) float64, calibrated."""
        return softmax(SCALE * (x @ self.weight[:-1] + self.weight[-1]) / self.temperature)


@dataclass
class HeadSolver:
    """Solves heads for a growing set of labels."""

    _choice: int = START
    _system: Dual | Primal | None = None
    _inverted_at: int = 0

    def solve(self, x: np.ndarray, labels: np.ndarray, classes: int, groups: np.ndarray, same: int = 0) -> Head:
        """The head for x (n, width) float32 with labels (n,) int64; images of one group (n,) are held out together.

        `same`: the number of leading rows of x that are those of the last call.
        """
        n = len(x)
        # The bias is a column of the design matrix, scaled so that the penalty hardly affects it.
        x = np.concatenate([x, np.full((n, 1), BIAS, np.float32)], 1)
        y = np.zeros((n, classes), np.float32)
        y[np.arange(n), labels] = 1
        # Centered targets: a class without evidence gets its share, not zero.
        y -= 1 / classes
        # Extending the inverse keeps its penalty, so after some growth the penalties beside it are tried.
        if self._system is not None and len(self._system) == same and n < AGAIN * self._inverted_at:
            if same < n:
                self._system.extend(x)
            weight, residuals = self._system.solve(x, y, groups)
        else:
            weight, residuals = self._search(x, y, groups)
        held_out = SCALE * (y - residuals)
        weight[-1] *= BIAS
        # A sample is enough for one parameter.
        sample = slice(None, None, -(-n // CALIBRATING))
        temperature = fit_temperature(Outputs(labels[sample], held_out[sample]))
        return Head(weight, PENALTIES[self._choice], temperature, held_out)

    def _search(self, x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Choose the penalty, or one beside it, by the predicted residual error sum of squares (Allen 1974)."""
        # The smaller system is inverted: images by images, or features by features.
        kind = Dual if len(x) <= x.shape[1] else Primal
        product = kind.product(x)
        best: tuple[float, np.ndarray, np.ndarray] | None = None
        middle = self._choice
        # The best penalty moves slowly while labels are added, so its neighbors suffice.
        for choice in range(max(0, middle - 1), min(len(PENALTIES), middle + 2)):
            system = kind.of(x, product, PENALTIES[choice])
            weight, residuals = system.solve(x, y, groups)
            loss = float((residuals**2).sum())
            if best is None or loss < best[0]:
                best, self._choice, self._system = (loss, weight, residuals), choice, system
        assert best is not None
        self._inverted_at = len(x)
        return best[1:]


@dataclass
class Dual:
    """The inverse T of the Cholesky factor of X X^T + penalty, (n, n) lower triangular: for fewer images than features.

    New images add rows to it and change none. An inverse of the whole matrix, extended by blocks, multiplies its error
    with each addition: on MNIST the accuracy fell from 90 to 12 % within 40 labels.
    """

    inverse: np.ndarray
    penalty: float

    def __len__(self) -> int:
        return len(self.inverse)

    @staticmethod
    def product(x: np.ndarray) -> np.ndarray:
        return x @ x.T

    @classmethod
    def of(cls, x: np.ndarray, product: np.ndarray, penalty: float) -> Dual:
        """The system of x (n, width), whose `product` is given."""
        return cls(_inverse_factor(product, penalty), penalty)

    def extend(self, x: np.ndarray) -> None:
        """Add the rows of x (n, width) that are new, at least one."""
        m = len(self)
        new = x[m:].astype(np.float64)
        beside = (x[:m] @ x[m:].T).T @ self.inverse.T
        corner = _inverse_factor(new @ new.T - beside @ beside.T, self.penalty)
        self.inverse = np.block([[self.inverse, np.zeros((m, len(new)))], [-corner @ beside @ self.inverse, corner]])

    def solve(self, x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(weight (width, classes), residual (n, classes) of each image under the head that has not seen its group)."""
        dual = self.inverse.T @ (self.inverse @ y)
        residuals = dual / np.maximum(np.einsum("ij,ij->j", self.inverse, self.inverse), 1e-6)[:, None]
        for rows in _repeated(groups):
            columns = self.inverse[:, rows]
            residuals[rows] = np.linalg.solve(columns.T @ columns, dual[rows])
        return x.T @ dual.astype(np.float32), residuals.astype(np.float32)


@dataclass
class Primal:
    """The inverse of X^T X + penalty, (width, width), and the leverage of each image: for more images than features."""

    inverse: np.ndarray
    leverage: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def __len__(self) -> int:
        return len(self.leverage)

    @staticmethod
    def product(x: np.ndarray) -> np.ndarray:
        return x.T @ x

    @classmethod
    def of(cls, x: np.ndarray, product: np.ndarray, penalty: float) -> Primal:
        """The system of x (n, width), whose `product` is given."""
        inverse = _inverse(product, penalty)
        return cls(inverse, np.einsum("ij,ij->i", x @ inverse.astype(np.float32), x))

    def extend(self, x: np.ndarray) -> None:
        """Add the rows of x (n, width) that are new, at least one."""
        m = len(self)
        new = x[m:]
        u = self.inverse @ new.T
        middle = np.linalg.inv(np.eye(len(new)) + new @ u)
        self.inverse -= u @ middle @ u.T
        projected = x[:m] @ u.astype(np.float32)
        before = self.leverage - np.einsum("ij,ij->i", projected @ middle, projected)
        self.leverage = np.concatenate([before, np.einsum("ij,ij->i", new @ self.inverse, new)])

    def solve(self, x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(weight (width, classes), residual (n, classes) of each image under the head that has not seen its group)."""
        weight = (self.inverse @ (x.T @ y)).astype(np.float32)
        seen = y - x @ weight
        residuals = seen / np.maximum(1 - self.leverage, 1e-6)[:, None]
        for rows in _repeated(groups):
            block = np.eye(len(rows), dtype=np.float32) - x[rows] @ self.inverse @ x[rows].T
            residuals[rows] = np.linalg.solve(block, seen[rows])
        return weight, residuals


def _inverse(product: np.ndarray, penalty: float) -> np.ndarray:
    """The inverse of a positive definite matrix (m, m) + penalty, float64: float32 would add up errors."""
    inverse, _ = lapack.dpotri(_factor(product, penalty), lower=1, overwrite_c=1)
    return np.tril(inverse) + np.tril(inverse, -1).T


def _inverse_factor(product: np.ndarray, penalty: float) -> np.ndarray:
    """The inverse of the Cholesky factor of a positive definite matrix (m, m) + penalty, lower triangular float64."""
    inverse, _ = lapack.dtrtri(_factor(product, penalty), lower=1, overwrite_c=1)
    return np.tril(inverse)


def _factor(product: np.ndarray, penalty: float) -> np.ndarray:
    return lapack.dpotrf(product + penalty * np.eye(len(product)), lower=1, overwrite_a=1)[0]


def _repeated(groups: np.ndarray) -> list[np.ndarray]:
    """The rows of each group with more than one."""
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    return [np.flatnonzero(group == g) for g in np.flatnonzero(sizes > 1)]

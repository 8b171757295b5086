"""Distributions of one number for many objects: mass in bins, spread over each.

Within a bin it is even, or, where neighbours tell more, smooth: the cumulative probability is then
a monotone cubic through its values at the edges (Fritsch & Butland 1984, SIAM J. Sci. Stat. Comput.
5, 300), for a posterior that is hardly wider than a bin is not even within it.

A bin of no width is an atom. So is the lowest code of a tokenizer, which stands for its lowest
value and whatever is below: stars at redshift 0, negative fluxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray
from scipy.interpolate import PchipInterpolator
from scipy.stats import chi2

from training.tokenizers.scalar import GridTokenizer, ScalarTokenizer

_HALVINGS = 50  # of a bin, to find a quantile in it: to rounding


@dataclass(frozen=True, slots=True)
class Densities:
    """One distribution an object, all on the same bins.

    Raises:
        ValueError: edges descend, a mass is negative or not finite, or masses do not add up to 1.
    """

    edges: Float64[ndarray, " edge"]  # one more than bins, ascending; equal ones enclose an atom
    mass: Float64[ndarray, "object bin"]
    smooth: bool = False  # quantiles, intervals and transforms are; mean and deviation are of bins

    def __post_init__(self) -> None:
        if len(self.edges) != self.mass.shape[1] + 1:
            raise ValueError(f"{self.mass.shape[1]} bins need one edge more, got {len(self.edges)}")
        if not (np.isfinite(self.edges).all() and (np.diff(self.edges) >= 0).all()):
            raise ValueError("edges of bins must be finite and ascend")
        if not (self.mass >= 0).all() or not np.allclose(self.mass.sum(axis=1), 1, atol=1e-6):
            raise ValueError("masses of a distribution must be 0 or more and add up to 1")

    def __len__(self) -> int:
        return len(self.mass)

    def density(self) -> Float64[ndarray, "object bin"]:
        """Probability per unit of the number in each bin, 0 in atoms.

        Its integral, together with `atoms`, is 1.
        """
        width = np.diff(self.edges)
        return np.where(width > 0, self.mass / np.where(width > 0, width, 1), 0)

    def atoms(self) -> Float64[ndarray, " object"]:
        """The probability that lies in bins of no width."""
        return self.mass[:, np.diff(self.edges) == 0].sum(axis=1)

    def mean(self) -> Float64[ndarray, " object"]:
        """Expected value."""
        return self.mass @ self._middle()

    def deviation(self) -> Float64[ndarray, " object"]:
        """Standard deviation."""
        square = self._middle() ** 2 + np.diff(self.edges) ** 2 / 12
        return np.sqrt(np.maximum(self.mass @ square - self.mean() ** 2, 0))

    def quantile(self, share: float) -> Float64[ndarray, " object"]:
        """The lowest value that this share of the probability is not above.

        Raises:
            ValueError: the share is not in 0 to 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"expected a share in 0 to 1, got {share}")
        below = self._below()
        number = (below[:, 1:] < min(share, 1 - 1e-12)).sum(axis=1)
        number = np.minimum(number, self.mass.shape[1] - 1)
        row = np.arange(len(self))
        mass = self.mass[row, number]
        inside = np.clip((share - below[row, number]) / np.where(mass > 0, mass, 1), 0, 1)
        if self.smooth:
            cubic = self._cubic(number)
            low, high = np.zeros(len(self)), np.ones(len(self))
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                is_below = _at(cubic, middle) < inside
                low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
            inside = (low + high) / 2
        return self.edges[number] + inside * np.diff(self.edges)[number]

    def median(self) -> Float64[ndarray, " object"]:
        """Half the probability lies on either side."""
        return self.quantile(0.5)

    def interval(self, share: float = 0.68) -> Float64[ndarray, "object 2"]:
        """Credible interval with equal tails: its lower and upper end.

        Raises:
            ValueError: the share is not in 0 to 1.
        """
        tail = (1 - share) / 2
        return np.stack([self.quantile(tail), self.quantile(1 - tail)], axis=1)

    def pit(
        self, truth: Float64[ndarray, " object"], *, by_bin: bool = False, seed: int = 0
    ) -> Float64[ndarray, " object"]:
        """Probability integral transform: how much of each distribution lies below the truth.

        Evenly distributed over 0 to 1 where the distributions are calibrated. Truths beyond the
        outermost edges count as these, truths in an atom get an even random share of its mass.

        Args:
            truth: Of each object.
            by_bin: Truths in any bin get a random share of its mass, as in an atom, so that it
                tells whether bins are as likely as they are said to be (Czado, Gneiting & Held
                2009, Biometrics 65, 1254). Otherwise a distribution that is narrower than its bins,
                and taken as even within them, counts as too wide.
            seed: Of the random shares.

        Raises:
            ValueError: another number of truths than objects, or one that is not finite.
        """
        if len(truth) != len(self) or not np.isfinite(truth).all():
            raise ValueError(f"expected {len(self)} finite truths, got {len(truth)} or NaN")
        inside = np.clip(truth, self.edges[0], self.edges[-1])
        if by_bin:
            # bins hold their upper edge; an atom is a bin whose edges are equal
            number = np.maximum(np.searchsorted(self.edges, inside, side="left") - 1, 0)
            row = np.arange(len(self))
            lower, shared = self._below()[row, number], self.mass[row, number]
        else:
            atom = (np.diff(self.edges) == 0) & (self.edges[:-1] == inside[:, None])
            lower, shared = self._cumulative(inside), (self.mass * atom).sum(axis=1)
        return lower + np.random.default_rng(seed).random(len(self)) * shared

    def _cumulative(self, at: Float64[ndarray, " object"]) -> Float64[ndarray, " object"]:
        """Probability below values within the outermost edges; atoms there are not below."""
        number = np.maximum(np.searchsorted(self.edges, at, side="left") - 1, 0)
        row, width = np.arange(len(self)), np.diff(self.edges)[number]
        share = np.clip((at - self.edges[number]) / np.where(width > 0, width, 1), 0, 1)
        share = _at(self._cubic(number), share) if self.smooth else share
        return self._below()[row, number] + share * self.mass[row, number]

    def _cubic(self, number: Int64[ndarray, " object"]) -> Float64[ndarray, "3 object"]:
        """How the mass of one bin of each object lies in it: see `_at`.

        Atoms have no neighbours: what is between them is smooth as if they were not there.
        """
        width = np.diff(self.edges)
        solid = width > 0
        row, mass = np.arange(len(self)), self.mass[np.arange(len(self)), number]
        even = np.repeat([[0.0], [0.0], [1.0]], len(self), axis=1)
        if solid.sum() < 2:
            return even
        curve = PchipInterpolator(
            np.append(self.edges[:-1][solid], self.edges[-1]),
            np.pad(self.mass[:, solid].cumsum(axis=1), ((0, 0), (1, 0))).T,
        )
        piece = np.maximum(solid.cumsum()[number] - 1, 0)
        of_width = width[number] ** np.array([[3], [2], [1]])
        cubic = curve.c[:3, piece, row] * of_width / np.where(mass > 0, mass, 1)
        return np.where(solid[number] & (mass > 0), cubic, even)

    def _below(self) -> Float64[ndarray, "object edge"]:
        """Probability below each edge."""
        return np.pad(self.mass.cumsum(axis=1), ((0, 0), (1, 0)))

    def _middle(self) -> Float64[ndarray, " bin"]:
        return (self.edges[:-1] + self.edges[1:]) / 2


def bin_edges(codec: GridTokenizer | ScalarTokenizer) -> Float64[ndarray, " edge"]:
    """Edges of what each code stands for, in the unit of the quantity.

    Code n covers the values above the table's entry n - 1 up to its entry n; code 0, an atom, its
    first entry and what is below.
    """
    if isinstance(codec, GridTokenizer):
        table = codec.quantizer.buckets.double()
    else:
        table = codec.quantizer.table.double()
        table = table.exp() if codec.config.log else table
    upper = table.cpu().numpy()
    return np.concatenate([upper[:1], upper])


@dataclass(frozen=True, slots=True, kw_only=True)
class Flatness:
    """How even the PIT of many objects is: chi-square of a histogram against the flat one."""

    chi_square: float
    degrees: int  # what it is on average where all is well, with deviation sqrt(2 degrees)
    p_value: float
    shares: tuple[float, ...]  # of the objects in each bin


def flatness(pit: Float64[ndarray, " object"], *, num_bins: int = 10) -> Flatness:
    """Measure the evenness of PIT values.

    Raises:
        ValueError: a value is not in 0 to 1, or there are fewer than five a bin.
    """
    if not ((pit >= 0) & (pit <= 1)).all():
        raise ValueError("PIT values must lie in 0 to 1")
    if len(pit) < 5 * num_bins:
        raise ValueError(f"{num_bins} bins need {5 * num_bins} values or more, got {len(pit)}")
    counts, _ = np.histogram(pit, bins=num_bins, range=(0, 1))
    expected = len(pit) / num_bins
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    return Flatness(
        chi_square=chi_square,
        degrees=num_bins - 1,
        p_value=float(chi2.sf(chi_square, num_bins - 1)),
        shares=tuple((counts / len(pit)).tolist()),
    )


def _at(
    cubic: Float64[ndarray, "3 object"], inside: Float64[ndarray, " object"]
) -> Float64[ndarray, " object"]:
    """The share of the mass of a bin that lies below a point in it, a share of its width."""
    return np.clip(((cubic[0] * inside + cubic[1]) * inside + cubic[2]) * inside, 0, 1)

"""The simulated sky as a whole: how many of what, where, and seen how."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray
from scipy.spatial import cKDTree

from training.surveys.sky_objects import KINDS


@dataclass(frozen=True, slots=True, kw_only=True)
class SkyConfig:
    """What sky to simulate. Counts of each class are exact; what is left over is elliptical.

    Raises:
        ValueError: a number or fraction is out of range, or the fractions add up to more than 1.
    """

    num_objects: int = 2000
    seed: int = 0
    spiral: float = 0.25
    merger: float = 0.02
    lens: float = 0.01
    edge_on: float = 0.14
    star: float = 0.10
    irregular: float = 0.08
    lenticular: float = 0.12
    spectrum_fraction: float = 0.4
    i_band_fraction: float = 0.7  # the rest is seen in g, r, z only
    ra_deg: float = 150.0
    dec_deg: float = 2.0
    half_width_deg: float = 3.0
    min_separation_arcsec: float = 5.0
    shard_objects: int = 100

    def __post_init__(self) -> None:
        if self.num_objects < 1:
            raise ValueError(f"num_objects must be 1 or more, got {self.num_objects}")
        if self.shard_objects < 1:
            raise ValueError(f"shard_objects must be 1 or more, got {self.shard_objects}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")
        fractions = {kind: getattr(self, kind) for kind in KINDS if kind != "elliptical"}
        shares = {
            **fractions,
            "spectrum_fraction": self.spectrum_fraction,
            "i_band_fraction": self.i_band_fraction,
        }
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in 0 to 1, got {value}")
        if sum(fractions.values()) > 1 + 1e-9:
            raise ValueError(
                f"class fractions add up to {sum(fractions.values()):.3f}, more than 1"
            )
        if not 0 < self.half_width_deg <= 30 or abs(self.dec_deg) + self.half_width_deg > 80:
            raise ValueError(
                "the patch must lie within 80 degrees of the equator and be at most 60 wide, got "
                f"dec_deg {self.dec_deg}, half_width_deg {self.half_width_deg}"
            )
        if self.min_separation_arcsec < 0:
            raise ValueError(
                f"min_separation_arcsec must be 0 or more: {self.min_separation_arcsec}"
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """What is decided for the sky as a whole: one entry an object."""

    kinds: tuple[str, ...]
    has_spectrum: Bool[ndarray, " object"]
    has_i: Bool[ndarray, " object"]
    ra_deg: Float64[ndarray, " object"]
    dec_deg: Float64[ndarray, " object"]


def plan(config: SkyConfig) -> Plan:
    """Deal out classes, spectra, bands and positions."""
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(0,)))
    num = config.num_objects
    counts = {kind: round(getattr(config, kind) * num) for kind in KINDS if kind != "elliptical"}
    kinds = [kind for kind, count in counts.items() for _ in range(count)][:num]
    kinds += ["elliptical"] * (num - len(kinds))
    order = rng.permutation(num)
    ra_deg, dec_deg = _positions(config, rng)
    return Plan(
        kinds=tuple(kinds[k] for k in order),
        has_spectrum=_exact_share(rng, num, config.spectrum_fraction),
        has_i=_exact_share(rng, num, config.i_band_fraction),
        ra_deg=ra_deg,
        dec_deg=dec_deg,
    )


def _exact_share(rng: np.random.Generator, num: int, share: float) -> Bool[ndarray, " object"]:
    chosen = np.zeros(num, dtype=bool)
    chosen[: round(share * num)] = True
    return rng.permutation(chosen)


def _positions(
    config: SkyConfig, rng: np.random.Generator
) -> tuple[Float64[ndarray, " object"], Float64[ndarray, " object"]]:
    """Uniform on the sphere within the patch, no two closer than the least separation."""
    num, half = config.num_objects, config.half_width_deg
    south, north = np.sin(np.deg2rad([config.dec_deg - half, config.dec_deg + half]))
    half_ra = half / np.cos(np.deg2rad(config.dec_deg))

    def draw_some(count: int) -> Float64[ndarray, "two object"]:
        ra = config.ra_deg + rng.uniform(-half_ra, half_ra, size=count)
        dec = np.rad2deg(np.arcsin(rng.uniform(south, north, size=count)))
        return np.stack([ra % 360, dec])

    places = draw_some(num)
    chord = 2 * math.sin(math.radians(config.min_separation_arcsec / 3600) / 2)
    for _ in range(200):
        ra, dec = np.deg2rad(places)
        points = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
        close = cKDTree(points).query_pairs(chord, output_type="ndarray")
        if len(close) == 0:
            return places[0], places[1]
        again = np.unique(close[:, 1])
        places[:, again] = draw_some(len(again))
    raise ValueError(
        f"{num:,} objects do not fit {config.min_separation_arcsec} arcsec apart into a patch of "
        f"{2 * half} degrees"
    )


def kinds(config: SkyConfig) -> tuple[str, ...]:
    """The class of every object of that sky, one of KINDS."""
    return plan(config).kinds


def object_id(config: SkyConfig, index: int) -> str:
    """What the simulated survey calls the object of that number."""
    return f"sim-{config.seed}-{index:06d}"

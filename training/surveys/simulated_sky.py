"""The simulated sky as a whole: how many of what, where, and seen how."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray
from scipy.spatial import cKDTree

from training.sky.objects import KINDS
from training.surveys.simulated_spectra import SPECTROGRAPHS, SpectrographName


@dataclass(frozen=True, slots=True, kw_only=True)
class SkyConfig:
    """What sky to simulate. Counts of each class are exact; what is left over is elliptical.

    The default has the class fractions of AION-1's evaluation sets (arXiv 2510.17960): spirals,
    barred ones among them, 26 %, mergers with shells 2 %, lenses 0.1 %. The other fractions, and
    what spoils frames, are a choice.

    Raises:
        ValueError: a number or fraction is out of range, or the fractions add up to more than 1.
    """

    num_objects: int = 2000
    seed: int = 0
    spiral: float = 0.18
    merger: float = 0.016
    lens: float = 0.0008
    edge_on: float = 0.14
    star: float = 0.09
    irregular: float = 0.08
    lenticular: float = 0.12
    barred: float = 0.08
    ring: float = 0.015
    shell: float = 0.004
    group_lens: float = 0.0002
    quasar: float = 0.03
    spectrum_fraction: float = 0.4
    spectrograph: SpectrographName = "sdss"  # whose grid and noise
    xp_fraction: float = 0.8  # of the stars, seen by Gaia
    i_band_fraction: float = 0.7  # the rest is seen in g, r, z only
    clumpy_source: float = 0.5  # of the lenses
    saturated_star: float = 0.03  # of the frames, here and below
    satellite_trail: float = 0.02
    bad_columns: float = 0.03  # beside the few that every sky has
    missing_band: float = 0.05
    depth_scatter_mag: float = 0.25  # between frames, beside the little that every sky has
    seeing_scatter: float = 0.12  # in the natural logarithm, likewise
    galactic_ebv_mag: float = 0.035  # median E(B-V) of the Milky Way's dust, patchy
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
            "xp_fraction": self.xp_fraction,
            "i_band_fraction": self.i_band_fraction,
            "clumpy_source": self.clumpy_source,
            "saturated_star": self.saturated_star,
            "satellite_trail": self.satellite_trail,
            "bad_columns": self.bad_columns,
            "missing_band": self.missing_band,
        }
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in 0 to 1, got {value}")
        for name in ("depth_scatter_mag", "seeing_scatter", "galactic_ebv_mag"):
            if not 0 <= getattr(self, name) <= 2:
                raise ValueError(f"{name} must lie in 0 to 2, got {getattr(self, name)}")
        if self.spectrograph not in SPECTROGRAPHS:
            raise ValueError(
                f"spectrograph must be one of {', '.join(SPECTROGRAPHS)}, got {self.spectrograph!r}"
            )
        if not (math.isfinite(self.ra_deg) and math.isfinite(self.dec_deg)):
            raise ValueError(
                f"ra_deg and dec_deg must be numbers, got {self.ra_deg} and {self.dec_deg}"
            )
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


_CLEAR: dict[str, float] = {
    "spiral": 0.25,
    "merger": 0.02,
    "lens": 0.01,
    "edge_on": 0.14,
    "star": 0.10,
    "irregular": 0.08,
    "lenticular": 0.12,
    **dict.fromkeys(("barred", "ring", "shell", "group_lens", "quasar", "clumpy_source"), 0.0),
    **dict.fromkeys(("saturated_star", "satellite_trail", "bad_columns", "missing_band"), 0.0),
    **dict.fromkeys(("xp_fraction", "depth_scatter_mag", "seeing_scatter"), 0.0),
    "galactic_ebv_mag": 0.0,
}


def clear_sky(**settings: Any) -> SkyConfig:
    """The common kinds alone, in frames that next to nothing spoils: the sky of the demo.

    Args:
        settings: Fields of SkyConfig that are to be otherwise.
    """
    return SkyConfig(**{**_CLEAR, **settings})


@dataclass(frozen=True, slots=True)
class Plan:
    """What is decided for the sky as a whole: one entry an object."""

    kinds: tuple[str, ...]
    has_spectrum: Bool[ndarray, " object"]
    has_i: Bool[ndarray, " object"]
    has_xp: Bool[ndarray, " object"]
    ra_deg: Float64[ndarray, " object"]
    dec_deg: Float64[ndarray, " object"]
    ebv_mag: Float64[ndarray, " object"]  # of the Milky Way


def plan(config: SkyConfig) -> Plan:
    """Deal out classes, spectra, bands and positions."""
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(0,)))
    num = config.num_objects
    counts = {kind: round(getattr(config, kind) * num) for kind in KINDS if kind != "elliptical"}
    kinds = [kind for kind, count in counts.items() for _ in range(count)][:num]
    kinds += ["elliptical"] * (num - len(kinds))
    order = rng.permutation(num)
    ra_deg, dec_deg = _positions(config, rng)
    dealt = tuple(kinds[k] for k in order)
    stars = np.flatnonzero([kind == "star" for kind in dealt])
    has_xp = np.zeros(num, dtype=bool)
    gaia_rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(6,)))
    has_xp[stars] = _exact_share(gaia_rng, len(stars), config.xp_fraction)
    return Plan(
        kinds=dealt,
        has_spectrum=_exact_share(rng, num, config.spectrum_fraction),
        has_i=_exact_share(rng, num, config.i_band_fraction),
        has_xp=has_xp,
        ra_deg=ra_deg,
        dec_deg=dec_deg,
        ebv_mag=_galactic_dust(config, ra_deg, dec_deg),
    )


def _galactic_dust(
    config: SkyConfig, ra_deg: Float64[ndarray, " object"], dec_deg: Float64[ndarray, " object"]
) -> Float64[ndarray, " object"]:
    """E(B-V) in clouds of half a degree to several: plane waves in its logarithm."""
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(7,)))
    lengths_deg = np.geomspace(0.5, 8.0, 12)
    angles, phases = rng.uniform(0, 2 * np.pi, size=(2, 12, 1))
    around = (ra_deg - config.ra_deg + 180) % 360 - 180
    along = around * np.cos(np.deg2rad(dec_deg)) * np.cos(angles) + dec_deg * np.sin(angles)
    waves = np.cos(2 * np.pi * along / lengths_deg[:, None] + phases)
    # larger clouds differ more, as on the sky
    heights = np.sqrt(lengths_deg / lengths_deg.sum())[:, None]
    return np.asarray(config.galactic_ebv_mag * np.exp(0.6 * (heights * waves).sum(axis=0)))


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

"""The draws behind the simulated sky are physically possible and do not give classes away."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.cosmology import FlatLambdaCDM

from training.sky.luminosity import lensing_efficiency
from training.sky.objects import KINDS, SkyObject
from training.sky.population import draw_object
from training.sky.starlight import colours


def some(kind: str, num: int = 60) -> list[SkyObject]:
    return [draw_object(kind, np.random.default_rng([11, seed])) for seed in range(num)]


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown kind 'comet': expected one of spiral, merger"):
        draw_object("comet", np.random.default_rng(0))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("star", "quasar")])
def test_luminosity_distance_and_size_belong_together(kind: str) -> None:
    cosmology = FlatLambdaCDM(H0=70, Om0=0.3)
    for thing in some(kind, 30):
        first = thing.galaxies[0]
        modulus = float(cosmology.distmod(thing.redshift).value)
        kpc = first.radius_arcsec * float(
            cosmology.kpc_proper_per_arcmin(thing.redshift).value / 60
        )
        assert -25.5 < first.mag_r - modulus < -16
        assert 0.5 < kpc < 40
        assert 14 < first.mag_r < 20.7


@pytest.mark.parametrize("kind", KINDS)
def test_shares_are_shares_and_shapes_are_possible(kind: str) -> None:
    for thing in some(kind):
        assert thing.kind == kind
        for galaxy in thing.galaxies:
            assert 0 <= galaxy.bulge_share <= 1
            assert 0 <= galaxy.young_share <= 1
            assert 0 < galaxy.axis_ratio <= 1
            assert 0.1 < galaxy.radius_arcsec <= 8
            for light in (galaxy.bulge, galaxy.disc, galaxy.young):
                assert light.old + light.middle + light.young == pytest.approx(1)
                assert 0 <= light.metal_poor <= 1


def test_each_kind_is_what_its_name_says() -> None:
    assert all(t.galaxies[0].arms is not None for t in some("spiral"))
    assert all(t.galaxies[0].thickness > 0 for t in some("edge_on"))
    assert all(t.galaxies[0].bulge_share == 1 for t in some("elliptical"))
    assert all(t.galaxies[0].arms is None for t in some("lenticular"))
    assert all(t.point is not None and not t.galaxies for t in some("star"))
    assert all(t.galaxies[0].bar is not None for t in some("barred"))
    assert all(t.galaxies[0].ring > 0.7 for t in some("ring"))
    assert all(len(t.galaxies[0].shells) >= 2 for t in some("shell"))
    assert all(t.point is not None and t.redshift > 0.1 for t in some("quasar"))
    for group in some("group_lens"):
        assert group.source is not None
        assert len(group.galaxies) == len(group.source.masses) >= 3
        assert group.source.clumps
    for merger in some("merger"):
        first, second = merger.galaxies
        assert first.redshift == second.redshift
        apart = np.hypot(first.x_arcsec - second.x_arcsec, first.y_arcsec - second.y_arcsec)
        assert apart < 2.5 * (first.radius_arcsec + second.radius_arcsec)


def test_a_lens_has_a_bluer_source_behind_it() -> None:
    for lens in some("lens"):
        host, source = lens.galaxies[0], lens.source
        assert source is not None
        assert 0.3 <= host.redshift <= 0.8
        assert 1 <= source.redshift <= 3
        einstein_arcsec = source.masses[0].einstein_radius_arcsec
        assert 0.6 <= einstein_arcsec <= 2.5
        assert np.hypot(source.x_arcsec, source.y_arcsec) < 0.8 * einstein_arcsec
        assert colours(source.light, source.redshift)[0] > colours(host.bulge, host.redshift)[0]


def test_lensing_efficiency_agrees_with_astropy() -> None:
    cosmology = FlatLambdaCDM(H0=70, Om0=0.3)
    for near, far in ((0.3, 1.0), (0.55, 1.8), (0.8, 3.0)):
        # space is flat, so distances along the line of sight add up
        share = cosmology.comoving_distance(near) / cosmology.comoving_distance(far)
        assert lensing_efficiency(near, far) == pytest.approx(1 - float(share.value), rel=2e-3)


def separation(first: list[float], second: list[float]) -> float:
    """Chance that a value of the first list exceeds one of the second."""
    return float(np.mean(np.array(first)[:, None] > np.array(second)[None, :]))


@pytest.mark.parametrize("other", ["elliptical", "lenticular", "merger"])
def test_brightness_and_size_alone_do_not_tell_spirals(other: str) -> None:
    spirals, others = some("spiral", 150), some(other, 150)

    def values(things: list[SkyObject], name: str) -> list[float]:
        return [getattr(thing.galaxies[0], name) for thing in things]

    for name in ("mag_r", "radius_arcsec"):
        assert 0.2 < separation(values(spirals, name), values(others, name)) < 0.8


def test_some_ellipticals_are_like_lens_hosts() -> None:
    lenses = [thing.redshift for thing in some("lens")]
    far = [thing for thing in some("elliptical", 150) if thing.redshift > min(lenses)]

    assert 0.15 < len(far) / 150 < 0.6


def test_neighbours_lie_in_the_frame_and_leave_the_centre_to_the_object() -> None:
    counts = []
    for thing in some("spiral", 150):
        counts.append(len(thing.neighbours))
        for neighbour in thing.neighbours:
            reach = max(abs(neighbour.x_arcsec), abs(neighbour.y_arcsec))
            assert reach <= 14.5
            assert np.hypot(neighbour.x_arcsec, neighbour.y_arcsec) >= 2.5
            assert min(neighbour.flux_nmgy) >= 0
    assert 4 < np.mean(counts) < 10

"""The statistics of a density: laws first (cell, origin, orientation, grid), then values against closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.spatial.transform import Rotation

from matminer_ed3d import grids, statistics
from matminer_ed3d.density import Density
from matminer_ed3d.sources import as_density
from matminer_ed3d.statistics import density_statistics, statistic_names

SHIFT = [0.123, 0.377, 0.41]
SKEW = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 1]])
SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")


def rotated(density: Density) -> Density:
    return Density(density.lattice @ Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix().T, density.channels)


MOVES = {
    "origin": lambda density: density.shift_origin(SHIFT),
    "orientation": rotated,
    "skewed": lambda density: density.change_basis(SKEW),
    "supercell": lambda density: density.change_basis([[2, 0, 0], [0, 1, 0], [0, 0, 1]]),
    "finer": lambda density: density.resample(tuple(n + 5 for n in density.grid_shape)),
    "all": lambda density: rotated(density.change_basis([[1, 1, 0], [0, 1, 0], [1, 0, 3]]).shift_origin(SHIFT)),
}


def assert_same(first: dict[str, float], second: dict[str, float], tolerance: float) -> None:
    assert list(first) == list(second)
    for name, value in first.items():
        assert second[name] == pytest.approx(value, rel=tolerance, abs=1e-3 * tolerance), name


# Laws


@pytest.mark.parametrize("system", SYSTEMS)
def test_structures_density_keeps_its_statistics_in_any_cell(crystals, system):
    density = as_density(crystals[system], method="band_limited", grid_spacing=0.3, d_min=1.0)
    features = density_statistics(density)
    for move in MOVES.values():
        assert_same(features, density_statistics(move(density)), 1e-6)


def test_real_chgcar_keeps_its_statistics_in_any_cell(chgcar_path):
    density = Density.from_file(chgcar_path)
    channels = ("total", "diff")
    features = density_statistics(density, channels=channels)
    for move in MOVES.values():
        assert_same(features, density_statistics(move(density), channels=channels), 1e-4)


def test_cell_that_noise_keeps_from_being_reduced_differs_little(quartz):
    density = as_density(quartz, method="band_limited", grid_spacing=0.4, d_min=1.0)
    doubled = density.change_basis(np.diag([1, 1, 2]))
    rho = doubled.channels["total"]
    for level in (1e-3, 1e-2):  # reduced to one cell; kept as two
        noise = level * rho.std() * np.random.default_rng(0).normal(size=rho.shape)
        noisy = density_statistics(Density(doubled.lattice, {"total": rho + noise}))
        scale = {name: abs(value) for name, value in density_statistics(density).items()}
        wrong = [abs(noisy[name] - value) / max(scale[name], 0.01) for name, value in density_statistics(density).items()]
        assert max(wrong) < 5e-2
        assert np.mean(wrong) < 5e-3


def test_grid_is_fine_enough(crystals, monkeypatch):
    density = as_density(crystals["tetragonal"], method="band_limited", grid_spacing=0.5, d_min=1.0)
    features = density_statistics(density)
    monkeypatch.setattr(statistics, "LEAST_POINTS", 80**3)
    fine = density_statistics(density)
    rms = fine["total laplacian rms"]
    wrong = {name: abs(features[name] - fine[name]) / (rms if "laplacian quantile" in name else abs(fine[name]) or 1) for name in fine}
    assert max(wrong.values()) < 2e-2
    assert np.mean(list(wrong.values())) < 2e-3
    exact = ("mean", "std", "skewness", "kurtosis", "rms", "correlation", "power")
    for name, error in wrong.items():
        if any(word in name for word in exact) and "gradient mean" not in name:
            assert error < 1e-9, name


def test_mean_is_electrons_per_volume(nacl):
    density = as_density(nacl, method="band_limited", grid_spacing=0.5, d_min=1.0)
    assert density_statistics(density)["total mean"] == pytest.approx(density.n_electrons() / density.volume, rel=1e-12)


def test_kernel_keeps_a_positive_density_positive():
    rho = np.zeros((40, 40, 40))
    rho[3, 5, 7] = 1e4  # all in one point: what rings most
    h, coefficients = grids.band_limit(rho, 10 * np.eye(3), 1.0)
    tapered = coefficients * statistics._taper(np.linalg.norm(h, axis=1) / 10, 1.0)
    seen = grids.from_coefficients(h, tapered, (60, 60, 60))
    assert seen.min() > -1e-9 * seen.max()
    along = np.flatnonzero(seen[:, round(5 * 1.5), round(7 * 1.5)] > seen.max() / 2)
    assert np.ptp(along) * 10 / 60 == pytest.approx(1.15, abs=0.35)  # full width at half maximum


# Values


@pytest.fixture
def wave() -> tuple[Density, float, float]:
    """One cosine wave of q = 0.25 1/Å on a mean of 1 e/Å³, its wave number and its amplitude as seen at 1 Å."""
    x = np.arange(32) / 32
    rho = 1 + 0.5 * np.cos(2 * np.pi * x)[:, None, None] * np.ones((32, 32, 32))
    return Density(4.0 * np.eye(3), {"total": rho}), 2 * np.pi / 4, 0.5 * (1 - 1.5 * 0.25 + 0.5 * 0.25**3)


def test_moments_of_a_wave(wave):
    density, k, amplitude = wave
    features = density_statistics(density)
    expected = {"mean": 1, "std": amplitude / np.sqrt(2), "skewness": 0, "kurtosis": -1.5}
    expected |= {
        "gradient rms": k * amplitude / np.sqrt(2),
        "gradient mean": k * amplitude * 2 / np.pi,
        "laplacian rms": k**2 * amplitude / np.sqrt(2),
    }
    for name, value in expected.items():
        assert features[f"total {name}"] == pytest.approx(value, rel=2e-3, abs=1e-9), name


def test_quantiles_of_a_wave_are_of_the_arcsine_law(wave):
    density, k, amplitude = wave
    features = density_statistics(density, thresholds=(0.9, 3.0))
    for share in statistics.QUANTILES:
        arcsine = -np.cos(np.pi * share)
        assert features[f"total quantile {share:g}"] == pytest.approx(1 + amplitude * arcsine, abs=0.02 * amplitude)
        assert features[f"total laplacian quantile {share:g}"] == pytest.approx(k**2 * amplitude * arcsine, abs=0.02 * amplitude * k**2)
    assert features["total volume above 0.9"] == pytest.approx(np.arccos(-0.1 / amplitude) / np.pi, abs=0.02)
    assert features["total volume above 3"] == 0


def test_reduced_gradient_of_a_wave(wave):
    density, k, amplitude = wave
    x = (np.arange(100_000) + 0.5) / 100_000
    rho, slope = 1 + amplitude * np.cos(2 * np.pi * x), k * amplitude * np.abs(np.sin(2 * np.pi * x))
    s = slope / (2 * (3 * np.pi**2) ** (1 / 3) * rho ** (4 / 3))
    features = density_statistics(density)
    assert features["total reduced gradient mean"] == pytest.approx((s * rho).sum() / rho.sum(), rel=5e-3)
    order = np.argsort(s)
    median = np.interp(0.5, np.cumsum(rho[order]) / rho.sum(), s[order])
    assert features["total reduced gradient quantile 0.5"] == pytest.approx(median, rel=2e-2)


def test_radial_functions_of_a_wave(wave):
    density, k, _ = wave
    features = density_statistics(density, max_distance=3.0, distance_step=1.0)
    for r in range(3):
        integral = quad(lambda x: np.sin(k * x) / (k * x) * x**2, r, r + 1)[0]
        assert features[f"total correlation {r}-{r + 1}"] == pytest.approx(3 * integral / ((r + 1) ** 3 - r**3), rel=1e-9)
    shells = {name: value for name, value in features.items() if "power" in name}
    assert sum(shells.values()) == pytest.approx(1)
    assert shells["total power near 0.2"] == pytest.approx(0.5)
    assert shells["total power near 0.3"] == pytest.approx(0.5)


def test_correlation_is_that_of_a_brute_force_average(crystals):
    density = as_density(crystals["triclinic"], method="band_limited", grid_spacing=0.5, d_min=1.0)
    h, coefficients = grids.band_limit(density.channel("total"), density.lattice, 1.0)
    inverse = np.linalg.inv(density.lattice).T
    seen = grids.from_coefficients(h, coefficients * statistics._taper(np.linalg.norm(h @ inverse, axis=1), 1.0), (24, 28, 20))
    seen -= seen.mean()
    patterson = np.fft.ifftn(np.abs(np.fft.fftn(seen)) ** 2).real / (seen**2).sum()
    sums, counts = np.zeros(5), np.zeros(5)
    frac = np.stack(np.meshgrid(*[np.arange(n) / n for n in seen.shape], indexing="ij"), -1)
    for image in np.ndindex(3, 3, 3):
        distance = np.linalg.norm((frac + np.array(image) - 2 + 0.0) @ density.lattice, axis=-1)
        for shell in range(5):
            inside = (distance >= shell) & (distance < shell + 1)
            sums[shell] += patterson[inside].sum()
            counts[shell] += inside.sum()
    features = density_statistics(density, max_distance=5.0, distance_step=1.0)
    found = [features[f"total correlation {shell}-{shell + 1}"] for shell in range(5)]
    np.testing.assert_allclose(found[1:], (sums / counts)[1:], atol=2e-2)


def test_flat_density_has_no_shape():
    features = density_statistics(Density(3.0 * np.eye(3), {"total": np.full((6, 6, 6), 0.7)}))
    assert all(np.isfinite(list(features.values())))
    assert features["total mean"] == pytest.approx(0.7)
    for name in ("skewness", "kurtosis", "laplacian skewness", "correlation 0-0.5", "power near 0.5"):
        assert features[f"total {name}"] == 0


def test_source_without_spin_has_zero_diff(nacl):
    density = as_density(nacl, method="band_limited", grid_spacing=0.5, d_min=1.0)
    features = density_statistics(density, channels=("diff",))
    assert features["diff mean magnitude"] == 0
    assert all(value == 0 for value in features.values())


def test_turning_all_spins_turns_the_sign_of_diff_only(chgcar_path):
    density = Density.from_file(chgcar_path)
    turned = Density(density.lattice, {"total": density.channels["total"], "diff": -density.channels["diff"]})
    one, two = (density_statistics(d, channels=("diff",)) for d in (density, turned))
    assert two["diff mean"] == pytest.approx(-one["diff mean"])
    assert two["diff mean magnitude"] == pytest.approx(one["diff mean magnitude"])
    assert two["diff correlation 2-2.5"] == pytest.approx(one["diff correlation 2-2.5"])


# Names and refusals


def test_names_are_those_of_the_values(wave):
    options = {"channels": ["total", "up"], "quantiles": (0.5,), "thresholds": (), "q_step": 0.25}
    names = statistic_names(**options)
    assert names == tuple(density_statistics(wave[0], **options))
    assert len(set(names)) == len(names)
    assert len(statistic_names()) == 69


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": "total"}, "tuple of names"),
        ({"channels": ()}, "tuple of names"),
        ({"channels": ("diff_x",)}, "among"),
        ({"d_min": 0.0}, "`d_min` must be positive, in Å"),
        ({"d_min": float("nan")}, "`d_min` must be positive"),
        ({"quantiles": (0.0, 0.5)}, "between 0 and 1"),
        ({"distance_step": 9.0}, "at most `max_distance`"),
        ({"q_step": 2.0}, "at most 1 / d_min"),
    ],
)
def test_odd_options_are_refused(wave, options, message):
    with pytest.raises(ValueError, match=message):
        density_statistics(wave[0], **options)


def test_density_without_electrons_is_refused():
    with pytest.raises(ValueError, match="must have electrons"):
        density_statistics(Density(3.0 * np.eye(3), {"total": np.zeros((6, 6, 6))}))


def test_coarse_grid_warns(wave):
    with pytest.warns(UserWarning, match="coarser than"):
        density_statistics(wave[0], d_min=0.2)

"""Atoms to density: electrons, exact voxel means, direct sums over images, and gemmi as oracle."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from scipy.special import erf

from matminer_ed3d import grids
from matminer_ed3d.promolecule import Atoms, atoms_from_structure, density_from_atoms, density_from_structure, form_factor_table

CELLS = {
    "cubic": (4.0, 4.0, 4.0, 90, 90, 90),
    "orthorhombic": (4.0, 3.1, 5.2, 90, 90, 90),
    "hexagonal": (4.0, 4.0, 5.2, 90, 90, 120),
    "monoclinic": (4.0, 3.1, 5.2, 90, 105, 90),
    "rhombohedral": (4.0, 4.0, 4.0, 60, 60, 60),
    "triclinic": (4.0, 3.6, 5.2, 75, 103, 112),
    "skewed": (4.0, 5.6, 6.2, 35, 48, 40),
}
U_CIF = {"U11_cif": 0.012, "U22_cif": 0.02, "U33_cif": 0.03, "U23_cif": 0.004, "U13_cif": -0.006, "U12_cif": 0.008}


def structure_in(cell: str, species: tuple = ("Fe", "O"), **site_properties: list) -> Structure:
    coords = [[0.113, 0.227, 0.331], [0.62, 0.518, 0.871]]
    lattice = Lattice.from_parameters(*CELLS[cell])
    return Structure(lattice, list(species), coords[: len(species)], site_properties=site_properties or None)


def table_electrons(structure: Structure) -> float:
    """Sum of occupancy times (a1 + a2 + a3 + a4 + c), straight from gemmi's table."""
    total = 0.0
    for site in structure:
        for element, occupancy in site.species.items():
            row = gemmi.Element(element.symbol).it92
            total += occupancy * (sum(row.a) + row.c)
    return total


def direct_sum(structure: Structure, frac: np.ndarray, b_iso: float) -> np.ndarray:
    """Density at some points: every Gaussian of every atom of every cell nearby, added in float64."""
    images = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    rho = np.zeros(len(frac))
    for site in structure:
        row = gemmi.Element(site.specie.symbol).it92
        for a, b in zip([*row.a, row.c], [*row.b, 0.0], strict=True):
            width = b + b_iso
            step = (frac - site.frac_coords)[:, None, :] + images
            r_squared = ((step @ structure.lattice.matrix) ** 2).sum(axis=-1)
            rho += a * (4 * np.pi / width) ** 1.5 * np.exp(-4 * np.pi**2 * r_squared / width).sum(axis=1)
    return rho


def grid_points(shape: tuple[int, int, int]) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(n) / n for n in shape], indexing="ij"), axis=-1).reshape(-1, 3)


# The table


def test_the_table_holds_98_neutral_atoms() -> None:
    a, b = form_factor_table()
    assert a.shape == b.shape == (99, 5)
    assert np.abs(a.sum(axis=1) - np.arange(99)).max() < 0.08  # the table's own fit: f(0) is Z to a few hundredths
    assert (b[:, 4] == 0).all()
    assert b[1:, :4].min() > 0


# Electrons


@pytest.mark.parametrize("grid_spacing", [0.25, 0.4, 1.5])
@pytest.mark.parametrize("cell", CELLS)
def test_the_voxel_mean_conserves_electrons(cell: str, grid_spacing: float) -> None:
    structure = structure_in(cell)
    density = density_from_structure(structure, grid_spacing=grid_spacing)
    assert density.n_electrons() == pytest.approx(table_electrons(structure), rel=1e-6)
    assert density.n_electrons() == pytest.approx(34.0, abs=0.1)


@pytest.mark.parametrize("number", [1, 5, 7, 17, 26, 79, 92, 98])
def test_every_element_conserves_electrons(number: int) -> None:
    a, _ = form_factor_table()
    lattice = Lattice.from_parameters(*CELLS["triclinic"]).matrix
    rho = density_from_atoms(Atoms.isotropic(lattice, np.array([[0.1, 0.2, 0.3]]), np.array([number])), (12, 12, 18))
    assert rho.mean() * abs(np.linalg.det(lattice)) == pytest.approx(a[number].sum(), rel=1e-12)


@pytest.mark.parametrize("method", ["mean", "band_limited"])
@pytest.mark.parametrize("cell", ["cubic", "hexagonal", "triclinic"])
def test_partial_and_mixed_occupancy_conserve_electrons(cell: str, method: str) -> None:
    structure = structure_in(cell, ({"Fe": 0.7, "Ni": 0.2}, {"O": 0.5}))
    density = density_from_structure(structure, method=method)  # type: ignore[arg-type]
    assert density.n_electrons() == pytest.approx(0.7 * 26 + 0.2 * 28 + 0.5 * 8, abs=0.1)
    assert density.n_electrons() == pytest.approx(table_electrons(structure), rel=1e-6)


def test_occupancy_is_a_weight() -> None:
    whole = density_from_structure(structure_in("triclinic", ("Fe", "O")), grid_spacing=0.4)
    part = density_from_structure(structure_in("triclinic", ({"Fe": 0.25}, {"O": 0.25})), grid_spacing=0.4)
    np.testing.assert_allclose(part.channel("total"), 0.25 * whole.channel("total"), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("b_iso", [0.0, 0.02, 0.5, 3.0, 20.0])
@pytest.mark.parametrize("cell", CELLS)
def test_isotropic_displacement_conserves_electrons(cell: str, b_iso: float) -> None:
    structure = structure_in(cell)
    density = density_from_structure(structure, grid_spacing=0.3, b_iso=b_iso)
    assert density.n_electrons() == pytest.approx(table_electrons(structure), rel=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_anisotropic_displacement_conserves_electrons(cell: str) -> None:
    structure = structure_in(cell, **{key: [value, 1.5 * value] for key, value in U_CIF.items()})
    assert density_from_structure(structure, grid_spacing=0.3).n_electrons() == pytest.approx(table_electrons(structure), rel=1e-6)


@pytest.mark.parametrize("angle", [8.0, 12.0, 20.0, 160.0])
def test_very_flat_cells_conserve_electrons(angle: float) -> None:
    lattice = Lattice.from_parameters(4, 5, 6, angle, 90, 90).matrix
    rho = density_from_atoms(Atoms.isotropic(lattice, np.array([[0.1, 0.2, 0.3]]), np.array([26]), b_iso=0.1), (16, 20, 24))
    assert rho.mean() * abs(np.linalg.det(lattice)) == pytest.approx(form_factor_table()[0][26].sum(), rel=1e-12)


# Exact means and values


@pytest.mark.parametrize("cell", ["orthorhombic", "hexagonal", "monoclinic", "triclinic"])
def test_the_voxel_mean_is_the_limit_of_ever_finer_points(cell: str) -> None:
    structure = structure_in(cell)
    coarse = (9, 8, 11)  # 0.4 to 0.5 Å
    mean = density_from_structure(structure, grid_shape=coarse).channel("total")
    ratios = (1, 3, 5, 9)
    averages = []
    for ratio in ratios:
        fine = density_from_structure(structure, grid_shape=tuple(ratio * n for n in coarse), method="point").channel("total")
        averages.append(grids.mean_resample(fine, coarse))
    errors = [np.abs(average - mean).max() / mean.max() for average in averages]
    assert errors[0] > 0.1, "points at this spacing are no means"
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[2] / errors[3] == pytest.approx((9 / 5) ** 2, rel=0.1), "the midpoint rule converges by the square of the step"
    limit = (9**2 * averages[3] - 5**2 * averages[2]) / (9**2 - 5**2)
    np.testing.assert_allclose(limit, mean, atol=5e-4 * mean.max())


@pytest.mark.parametrize("shape", [(16, 13, 21), (9, 8, 11), (4, 2, 5)])
@pytest.mark.parametrize("b_iso", [0.1, 0.5, 2.0])
def test_the_voxel_mean_in_an_orthogonal_cell_is_a_product_of_error_functions(shape: tuple[int, int, int], b_iso: float) -> None:
    structure = structure_in("orthorhombic")
    rho = density_from_structure(structure, grid_shape=shape, b_iso=b_iso).channel("total")
    expected = np.zeros(shape)
    for site in structure:
        row = gemmi.Element(site.specie.symbol).it92
        for a, b in zip([*row.a, row.c], [*row.b, 0.0], strict=True):
            sigma = np.sqrt((b + b_iso) / (8 * np.pi**2))
            shares = []
            for n, length, centre in zip(shape, structure.lattice.abc, site.frac_coords, strict=True):
                edges = ((np.arange(n + 1) - 0.5) / n - centre)[:, None] + np.arange(-6, 7)
                shares.append(np.diff(0.5 * erf(edges * length / sigma / np.sqrt(2)).sum(axis=1)))
            expected += a * np.einsum("i,j,k->ijk", *shares)
    expected *= rho.size / structure.volume
    np.testing.assert_allclose(rho, expected, atol=1e-5 * expected.max())


def test_the_voxel_mean_is_the_limit_in_a_skewed_cell_with_little_displacement() -> None:
    # The branch for exponents that would overflow: a mean of means is a mean.
    lattice = Lattice.from_parameters(4, 5, 6, 90, 11, 90).matrix
    atoms = Atoms.isotropic(lattice, np.array([[0.1, 0.2, 0.3]]), np.array([26]), b_iso=0.1)
    coarse = density_from_atoms(atoms, (11, 13, 17))
    fine = grids.mean_resample(density_from_atoms(atoms, (33, 39, 51)), (11, 13, 17))
    np.testing.assert_allclose(coarse, fine, atol=1e-4 * coarse.max())


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("b_iso", [0.5, 2.0])
def test_point_values_equal_the_direct_sum_over_images(cell: str, b_iso: float) -> None:
    structure = structure_in(cell)
    shape = grids.fine_grid_shape(structure.lattice.matrix, 0.5)
    rho = density_from_structure(structure, grid_shape=shape, method="point", b_iso=b_iso).channel("total")
    expected = direct_sum(structure, grid_points(shape), b_iso).reshape(shape)
    np.testing.assert_allclose(rho, expected, atol=2e-5 * expected.max())


@pytest.mark.parametrize("method", ["mean", "point"])
def test_a_cell_smaller_than_an_atom_holds_all_its_images(method: str) -> None:
    small = Structure(Lattice.from_parameters(2.1, 2.2, 2.3, 80, 95, 100), ["Cs"], [[0.1, 0.2, 0.3]])
    large = small * (2, 2, 2)
    one = density_from_structure(small, grid_shape=(5, 6, 7), method=method)  # type: ignore[arg-type]
    eight = density_from_structure(large, grid_shape=(10, 12, 14), method=method)  # type: ignore[arg-type]
    scale = one.channel("total").max()
    np.testing.assert_allclose(eight.channel("total"), np.tile(one.channel("total"), (2, 2, 2)), atol=1e-4 * scale)


def test_the_voxel_mean_is_never_much_below_zero(crystals: dict[str, Structure]) -> None:
    for structure in crystals.values():
        rho = density_from_structure(structure).channel("total")
        assert rho.min() > -1e-4 * rho.max()


@pytest.mark.parametrize("method", ["mean", "point", "band_limited"])
def test_the_order_of_sites_and_whole_lattice_vectors_change_nothing(method: str) -> None:
    structure = structure_in("triclinic", ("Fe", "O"))
    coords = structure.frac_coords[[1, 0]] + np.array([[3, 0, -1], [0, -2, 0]])
    moved = Structure(structure.lattice, ["O", "Fe"], coords)
    left, right = (density_from_structure(s, method=method, grid_spacing=0.4).channel("total") for s in (structure, moved))  # type: ignore[arg-type]
    np.testing.assert_allclose(left, right, atol=1e-10 * left.max())


@pytest.mark.parametrize("method", ["mean", "point", "band_limited"])
def test_moving_all_atoms_by_grid_steps_moves_the_density(method: str) -> None:
    structure = structure_in("monoclinic")
    moved = structure.copy()
    moved.translate_sites([0, 1], [2 / 10, -1 / 9, 3 / 12], frac_coords=True)
    left, right = (density_from_structure(s, method=method, grid_shape=(10, 9, 12)).channel("total") for s in (structure, moved))  # type: ignore[arg-type]
    np.testing.assert_allclose(np.roll(left, (2, -1, 3), axis=(0, 1, 2)), right, atol=1e-9 * left.max())


# gemmi as oracle


def gemmi_density(structure: Structure, shape: tuple[int, int, int], b_iso: float, aniso: gemmi.SMat33f | None = None) -> np.ndarray:
    """Density of gemmi's own calculator in P1, at points."""
    model = gemmi.Structure()
    model.cell = gemmi.UnitCell(*structure.lattice.parameters)
    model.spacegroup_hm = "P 1"
    residue = gemmi.Residue()
    residue.name, residue.seqid = "X", gemmi.SeqId("1")
    for site in structure:
        atom = gemmi.Atom()
        atom.name = site.specie.symbol
        atom.element = gemmi.Element(site.specie.symbol)
        atom.pos = model.cell.orthogonalize(gemmi.Fractional(*site.frac_coords))
        atom.b_iso = b_iso
        if aniso is not None:
            atom.aniso = aniso
        residue.add_atom(atom)
    chain = gemmi.Chain("A")
    chain.add_residue(residue)
    only = gemmi.Model(1)
    only.add_chain(chain)
    model.add_model(only)
    model.setup_cell_images()
    calculator = gemmi.DensityCalculatorX()
    calculator.cutoff = 1e-7
    calculator.d_min, calculator.rate = 0.12, 1.0
    calculator.set_grid_cell_and_spacegroup(model)
    calculator.grid.set_size(*shape)
    calculator.add_model_density_to_grid(model[0])
    return np.array(calculator.grid.array, dtype=float)


@pytest.mark.parametrize("cell", ["cubic", "hexagonal", "monoclinic", "triclinic"])
@pytest.mark.parametrize("b_iso", [0.5, 1.5])
def test_point_values_equal_gemmi(cell: str, b_iso: float) -> None:
    structure = structure_in(cell)
    shape = grids.fine_grid_shape(structure.lattice.matrix, 0.3)
    expected = gemmi_density(structure, shape, b_iso)
    rho = density_from_structure(structure, grid_shape=shape, method="point", b_iso=b_iso).channel("total")
    np.testing.assert_allclose(rho, expected, atol=2e-5 * expected.max())


@pytest.mark.parametrize("cell", ["cubic", "hexagonal", "monoclinic", "triclinic"])
def test_anisotropic_point_values_equal_gemmi(cell: str) -> None:
    structure = structure_in(cell, **{key: [value, value] for key, value in U_CIF.items()})
    shape = grids.fine_grid_shape(structure.lattice.matrix, 0.3)
    # gemmi wants U in its own Cartesian frame: A N U N^T A^T, with A its orthogonalization and N the reciprocal lengths.
    unit_cell = gemmi.UnitCell(*structure.lattice.parameters)
    reciprocal = unit_cell.reciprocal()
    to_cart = np.array(unit_cell.orth.mat.tolist()) @ np.diag([reciprocal.a, reciprocal.b, reciprocal.c])
    u11, u22, u33, u23, u13, u12 = U_CIF.values()
    u = to_cart @ np.array([[u11, u12, u13], [u12, u22, u23], [u13, u23, u33]]) @ to_cart.T
    expected = gemmi_density(structure, shape, 0.0, gemmi.SMat33f(u[0, 0], u[1, 1], u[2, 2], u[0, 1], u[0, 2], u[1, 2]))
    rho = density_from_structure(structure, grid_shape=shape, method="point").channel("total")
    np.testing.assert_allclose(rho, expected, atol=2e-5 * expected.max())


@pytest.mark.parametrize("anisotropic", [False, True])
@pytest.mark.parametrize("cell", ["hexagonal", "triclinic"])
def test_fourier_coefficients_equal_the_structure_factors_of_gemmi(cell: str, anisotropic: bool) -> None:
    structure = structure_in(cell, **({key: [value, value] for key, value in U_CIF.items()} if anisotropic else {"u_iso": [0.01, 0.01]}))
    small = gemmi.SmallStructure()
    small.cell = gemmi.UnitCell(*structure.lattice.parameters)
    small.spacegroup = gemmi.SpaceGroup("P 1")
    small.setup_cell_images()
    for site in structure:
        atom = gemmi.SmallStructure.Site()
        atom.label = atom.type_symbol = site.specie.symbol
        atom.element = gemmi.Element(site.specie.symbol)
        atom.fract = gemmi.Fractional(*site.frac_coords)
        atom.occ = 1.0
        u11, u22, u33, u23, u13, u12 = U_CIF.values()
        atom.u_iso = 0.01
        if anisotropic:
            atom.aniso = gemmi.SMat33d(u11, u22, u33, u12, u13, u23)
        small.add_site(atom)
    density = density_from_structure(structure, method="band_limited", grid_spacing=0.3, d_min=0.8)
    h, f = grids.band_limit(density.channel("total"), density.lattice, 0.8)
    calculator = gemmi.StructureFactorCalculatorX(small.cell)
    expected = [calculator.calculate_sf_from_small_structure(small, [int(i) for i in row]) for row in h]
    np.testing.assert_allclose(f.conj() * density.volume, expected, atol=1e-8 * abs(f[0]) * density.volume + 1e-6)


# Displacement


def test_displacements_given_in_three_ways_are_the_same() -> None:
    cubic = "cubic"
    u = 0.01
    ways = [
        structure_in(cubic, u_iso=[u, u]),
        structure_in(cubic, b_iso=[8 * np.pi**2 * u] * 2),
        structure_in(cubic, **{key: [u if key[1] == key[2] else 0.0] * 2 for key in U_CIF}),
    ]
    first, *others = (atoms_from_structure(structure) for structure in ways)
    for other in others:
        np.testing.assert_allclose(other.u_frac, first.u_frac, atol=1e-15)


def test_a_site_without_displacement_takes_the_default() -> None:
    atoms = atoms_from_structure(structure_in("triclinic", b_iso=[None, 2.0]), b_iso=1.0)
    np.testing.assert_allclose(atoms.u_frac[1], 2 * atoms.u_frac[0])
    metric_inverse = np.linalg.inv(atoms.lattice @ atoms.lattice.T)
    np.testing.assert_allclose(atoms.u_frac[0], metric_inverse / (8 * np.pi**2))


def test_displacement_lowers_and_widens_the_peak() -> None:
    sharp, blurred = (density_from_structure(structure_in("cubic"), b_iso=b).channel("total") for b in (0.3, 3.0))
    assert blurred.max() < 0.7 * sharp.max()
    assert blurred.min() > 0


def test_isotopes_count_as_their_atom() -> None:
    heavy = density_from_structure(structure_in("cubic", ("D",))).channel("total")
    np.testing.assert_array_equal(heavy, density_from_structure(structure_in("cubic", ("H",))).channel("total"))


# Resolution


def test_a_band_limited_density_has_no_reflection_beyond_d_min() -> None:
    density = density_from_structure(structure_in("triclinic"), method="band_limited", grid_spacing=0.3, d_min=1.0)
    h = grids.reflections(density.grid_shape)
    d = 1 / np.maximum(np.linalg.norm(h @ np.linalg.inv(density.lattice).T, axis=1), 1e-9)
    f = np.abs(grids.fourier_coefficients(density.channel("total")).ravel())
    assert f[d < 0.999].max() < 1e-12
    assert f[d > 1.001].max() > 0.1


def test_a_finer_grid_does_not_change_band_limited_coefficients() -> None:
    coarse, fine = (
        density_from_structure(structure_in("triclinic"), method="band_limited", grid_spacing=spacing, d_min=1.0) for spacing in (0.45, 0.2)
    )
    (h, f), (finer_h, finer_f) = (grids.band_limit(d.channel("total"), d.lattice, 1.0) for d in (coarse, fine))
    np.testing.assert_array_equal(sorted(map(tuple, h)), sorted(map(tuple, finer_h)))
    np.testing.assert_allclose(f[np.lexsort(h.T)], finer_f[np.lexsort(finer_h.T)], atol=1e-12)


# What is refused


def test_an_empty_structure_is_refused() -> None:
    with pytest.raises(ValueError, match="`structure` must hold at least one atom, got none"):
        density_from_structure(Structure(Lattice.cubic(4), [], []))


def test_a_structure_of_vacancies_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one atom"):
        density_from_structure(Structure(Lattice.cubic(4), [{"Fe": 0.0}], [[0, 0, 0]]))


@pytest.mark.parametrize("symbol", ["X", "Xa", "Es", "Og"])
def test_an_unknown_element_is_refused(symbol: str) -> None:
    from pymatgen.core.periodic_table import DummySpecies, Element

    specie = Element(symbol) if symbol in ("Es", "Og") else DummySpecies(symbol)
    with pytest.raises(ValueError, match=rf"no scattering factor for {symbol}.* at .*known are H to Cf"):
        density_from_structure(structure_in("cubic", ("Fe", specie)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_coordinates_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="coordinates of `structure` must be finite"):
        density_from_structure(Structure(Lattice.cubic(4), ["Fe", "O"], [[0, 0, 0], [0.5, value, 0.5]]))


def test_a_lattice_without_volume_is_refused() -> None:
    flat = np.array([[4.0, 0, 0], [0, 4.0, 0], [4.0, 4.0, 0]])
    for lattice in (flat, np.full((3, 3), np.nan)):
        with pytest.raises(ValueError, match="lattice of `structure` must be finite with a non-zero volume"):
            density_from_structure(Structure(Lattice(lattice), ["Fe"], [[0, 0, 0]]))


@pytest.mark.parametrize("displacement", [{"b_iso": [-1.0]}, {"u_iso": [np.nan]}, {**{k: [v] for k, v in U_CIF.items()}, "U12_cif": [0.5]}])
def test_a_displacement_that_is_none_is_refused(displacement: dict[str, list]) -> None:
    with pytest.raises(ValueError, match=r"displacement of site Fe1? must be finite and positive"):
        density_from_structure(structure_in("triclinic", ("Fe",), **displacement))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid_spacing": 0.0}, "`grid_spacing` must be a positive distance in Å, got 0.0"),
        ({"grid_spacing": np.nan}, "`grid_spacing` must be a positive distance"),
        ({"grid_shape": (4, 4, 0)}, "`grid_shape` must be three counts of at least 1"),
        ({"grid_shape": (1 << 10, 1 << 10, 1 << 9)}, "a grid of 1024 x 1024 x 512 points over a cell of .* Å must have at most 268435456"),
        ({"b_iso": -0.1}, "`b_iso` must be a B in Å² of at least 0, got -0.1"),
        ({"b_iso": np.nan}, "`b_iso` must be a B"),
        ({"d_min": 1.0}, "`d_min` goes with method='band_limited'"),
        ({"method": "band_limited", "d_min": 0.4}, r"`d_min` must be at least twice .* 0\.5\d* Å, got 0.4; use a finer grid"),
        ({"method": "band_limited", "d_min": np.nan}, "`d_min` must be at least"),
    ],
)
def test_a_bad_option_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        density_from_structure(structure_in("cubic"), **options)


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("options", "message"),
    [({"method": "average"}, "`method` must be 'mean', 'point' or 'band_limited', got 'avera"), ({"grid_shape": (4, 4)}, "three counts")],
)
def test_a_bad_type_of_option_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        density_from_structure(structure_in("cubic"), **options)

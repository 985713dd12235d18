"""Scattering factors: the published tables, by other libraries' copies, and the ions of a structure."""

from __future__ import annotations

import warnings

import gemmi
import numpy as np
import pytest
from pymatgen.core.periodic_table import Species
from pymatgen.core.structure import Structure

from matminer_ed3d.promolecule import atoms_from_structure, density_from_structure
from matminer_ed3d.scattering_factors import coefficients, gaussians_of, species_name

TABLES = {"it92": 104, "waasmaier_kirfel": 110}
S = np.linspace(0, 2, 21)


def factor(table: str, z: int, charge: int = 0, s: np.ndarray = S) -> np.ndarray:
    a, b = coefficients(table)[z, charge]
    return (a[:, None] * np.exp(-b[:, None] * s**2)).sum(axis=0)


@pytest.mark.parametrize("table", TABLES)
def test_a_table_holds_98_atoms_and_its_ions(table):
    species = coefficients(table)
    assert [z for z, charge in species if charge == 0] == list(range(1, 99))
    assert sum(charge != 0 for _, charge in species) == TABLES[table]
    for (z, charge), (a, b) in species.items():
        assert b[-1] == 0
        assert a.sum() == pytest.approx(z - charge, abs=0.06)  # the fit's own error
        assert b.min() > -0.02
        assert not a.flags.writeable
        assert not b.flags.writeable


def test_it92_is_that_of_gemmi():
    ignored = gemmi.IT92_get_ignore_charge()
    gemmi.IT92_set_ignore_charge(False)
    try:
        for (z, charge), (a, b) in coefficients("it92").items():
            row = gemmi.IT92_get_exact(gemmi.Element(z), charge)
            np.testing.assert_allclose(a, [*row.a, row.c], rtol=1e-6)
            np.testing.assert_allclose(b, [*row.b, 0], rtol=1e-6)
    finally:
        gemmi.IT92_set_ignore_charge(ignored)


def test_nothing_here_changes_the_table_of_gemmi():
    before = gemmi.Element("Fe").it92.get_coefs()
    gaussians_of(np.array([26]))
    assert gemmi.Element("Fe").it92.get_coefs() == before
    assert gemmi.IT92_get_ignore_charge()


def test_waasmaier_kirfel_is_that_of_periodictable():
    cromermann = pytest.importorskip("periodictable.cromermann")
    for z, charge in coefficients("waasmaier_kirfel"):
        name = species_name(gemmi.Element(z).name, float(charge))
        if name == "K1+":  # its loader misses this one
            continue
        theirs = cromermann.fxrayatstol(name, S)
        np.testing.assert_allclose(factor("waasmaier_kirfel", z, charge), theirs, atol=1e-6)


def test_the_two_tables_agree_where_both_hold():
    for z in range(2, 99):
        np.testing.assert_allclose(factor("it92", z), factor("waasmaier_kirfel", z), atol=0.13)


@pytest.mark.parametrize("table", TABLES)
def test_the_core_of_an_ion_is_that_of_its_atom(table):
    s = np.linspace(0.9, 2, 12)
    for z, charge in coefficients(table):
        np.testing.assert_allclose(factor(table, z, charge, s), factor("waasmaier_kirfel", z, 0, s), atol=0.2)


def test_many_atoms_get_their_rows():
    a, b = gaussians_of(np.array([26, 8, 26]), np.array([3, -2, 0]))
    for n, key in enumerate([(26, 3), (8, -2), (26, 0)]):
        np.testing.assert_array_equal(a[n], coefficients()[key][0])
        np.testing.assert_array_equal(b[n], coefficients()[key][1])


@pytest.mark.usefixtures("as_user")
def test_what_is_not_known_is_named():
    with pytest.raises(ValueError, match=r"`table` must be 'it92' or 'waasmaier_kirfel', got 'xyz'"):
        coefficients("xyz")
    with pytest.raises(ValueError, match=r"`it92` has no scattering factor for \(Z, charge\) \[\(99, 0\)\]"):
        gaussians_of(np.array([99]))


# --- ions of a structure -------------------------------------------------------------------------------------------------------


def structure_of(*species: Species | str) -> Structure:
    return Structure(4 * np.eye(3), list(species), [[0.1, 0.2, 0.3], [0.6, 0.7, 0.8]][: len(species)])


@pytest.mark.parametrize("table", TABLES)
def test_an_ion_has_its_own_electrons(table):
    iron, oxygen = Species("Fe", 3), Species("O", -2)
    density = density_from_structure(structure_of(iron), table=table)
    assert density.n_electrons() == pytest.approx(23, abs=0.03)
    assert density_from_structure(structure_of(iron), table=table, ions=False).n_electrons() == pytest.approx(26, abs=0.03)
    assert atoms_from_structure(structure_of(iron, oxygen), table=table).charges.tolist() == [3, -2]


def test_a_structure_without_states_is_neutral_and_silent():
    assert atoms_from_structure(structure_of("Fe", "O")).charges is None
    assert atoms_from_structure(structure_of(Species("Fe", 0), "O")).charges is None


@pytest.mark.parametrize(
    ("species", "missing", "way_out"),
    [
        ((Species("Ti", 4), Species("O", -2)), r"Ti4\+", r"table='waasmaier_kirfel'.* has all"),
        ((Species("Fe", 2.5), Species("O", -2)), r"Fe2\.5\+", "ions=False"),
        ((Species("N", -3), Species("Zr", 4)), r"N3-, Zr4\+", "ions=False"),
    ],
)
def test_an_ion_that_the_table_lacks_makes_all_atoms_neutral(species, missing, way_out):
    with pytest.warns(UserWarning, match=rf"no scattering factor for {missing}; all atoms .* neutral; .*{way_out}") as caught:
        atoms = atoms_from_structure(structure_of(*species))
    assert len(caught) == 1
    assert atoms.charges is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert atoms_from_structure(structure_of(*species), ions=False).charges is None


def test_the_table_is_that_asked_for():
    it92, wk = (density_from_structure(structure_of("H"), table=table).channel("total") for table in TABLES)
    assert np.abs(it92 - wk).max() > 0.005 * wk.max()
    atoms = atoms_from_structure(structure_of("C"), table="waasmaier_kirfel")
    assert atoms.table == "waasmaier_kirfel"

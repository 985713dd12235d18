"""Units and quantities of formats that state none."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from matminer_ed3d.readers import units


def test_constants_are_those_of_codata():
    import scipy.constants

    assert pytest.approx(scipy.constants.physical_constants["Bohr radius"][0] * 1e10, rel=1e-9) == units.BOHR
    assert pytest.approx(scipy.constants.physical_constants["Hartree energy in eV"][0], rel=1e-9) == units.HARTREE


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("electron_density_e/A^3", "e/A^3"),
        ("density (e/Å³)", "e/A^3"),
        ("electrons/Angstrom^3", "e/A^3"),
        ("Electron density, e/bohr^3", "e/bohr^3"),
        ("Electron density in real space (e/Bohr^3)", "e/bohr^3"),
        ("e/a0^3", "e/bohr^3"),
        ("e / a.u.**3", "e/bohr^3"),
        ("from e/A^3 to e/bohr^3", None),
        ("Electron density from Total SCF Density", None),
        ("core/all 3", None),
    ],
)
def test_a_unit_in_a_title_is_found(text, unit):
    assert units.unit_named(text) == unit


@pytest.mark.parametrize(
    ("text", "quantity"),
    [
        ("Electron density from Total SCF Density", "electron_density"),
        ("Electrostatic potential from Total SCF Density", "potential"),
        ("-Quickstep-\n HARTREE POTENTIAL", "potential"),
        ("Hartree-Fock charge density", "electron_density"),
        ("-Quickstep-\n SUM OF ALPHA AND BETA DENSITY", "electron_density"),
        ("-Quickstep-\n SPIN DENSITY", "unknown"),
        ("Electron density from Spin SCF Density", "unknown"),
        ("spin-polarised calculation, charge density", "electron_density"),
        ("-Quickstep-\n WAVEFUNCTION     4 spin  1 i.e. HOMO -  0", "orbital"),
        ("H2O MO=HOMO\nMO coefficients", "orbital"),
        ("Mo S2", None),
        ("-Quickstep-\n ELF S1", "elf"),
        ("shelf", None),
        ("charge density difference", "unknown"),
        ("electron_density_e/A^3", "electron_density"),
        ("Cube file from ASE\nOUTER LOOP: X, MIDDLE LOOP: Y, INNER LOOP: Z", None),
    ],
)
def test_a_quantity_in_a_title_is_found(text, quantity):
    assert units.quantity_named(text) == quantity


def test_values_that_are_negative_in_earnest_are_no_electron_density():
    wave = np.sin(np.arange(20.0))
    assert units.negative_share(wave) == pytest.approx(-wave[wave < 0].sum() / np.abs(wave).sum())
    assert units.negative_share(np.zeros(3)) == 0
    assert units.settle_quantity("x", np.array([1.0, 1.0, -1e-3]), "", None) == "electron_density"
    with pytest.warns(UserWarning, match="x: .* is negative"):
        assert units.settle_quantity("x", wave, "charge density", None) == "unknown"
    assert units.settle_quantity("x", wave, "", "electron_density") == "electron_density"
    assert units.settle_quantity("x", wave, "the potential", None) == "potential"


# Silicon: eight electrons of valence, in two atoms of 14 protons.
SILICON = (14, 14)


@pytest.mark.parametrize("own", ["e/A^3", "e/bohr^3"])
def test_the_unit_of_the_format_stands_where_the_electrons_agree(own):
    integral = 8.0 if own == "e/A^3" else 8.0 * units.BOHR**3
    for valence in ((), (4.0, 4.0), (0.0, 0.0), (14.0, 14.0)):
        units.check_own_unit("x", integral, own, SILICON, valence)
    units.check_own_unit("x", integral, own, ())


@pytest.mark.parametrize(
    ("integral", "valence", "reason"),
    [
        (8.0, (), "53.98.* electrons if in e/bohr.3, 8 if in e/A.3; the 2 atoms have 28 protons"),  # e/Å³ in a cube
        (8.0, (4.0, 4.0), "53.98"),
        (3.0, (1.5, 1.5), "20.24"),  # possible in both units, and the charges of the ions say that it is e/Å³
        (3.0, (), "20.24"),  # whole in one of the two
        (8.0 * 40.0, (), "2159"),  # density times volume
    ],
)
def test_electrons_that_speak_against_a_unit_make_one_warning(integral, valence, reason):
    with pytest.warns(UserWarning, match=rf"x: {reason}.*unit='e/A\^3'") as caught:
        units.check_own_unit("x", integral, "e/bohr^3", SILICON, valence)
    assert len(caught) == 1


def test_few_electrons_are_a_part_and_no_reason_to_warn():
    units.check_own_unit("x", 0.3 * units.BOHR**3, "e/bohr^3", SILICON)


@pytest.mark.parametrize("unit", ["e/A^3", "e/bohr^3"])
def test_a_whole_number_of_electrons_chooses_the_unit(unit):
    integral = 8.0 if unit == "e/A^3" else 8.0 * units.BOHR**3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert units.unit_by_count("x", integral, SILICON) == unit


@pytest.mark.parametrize(
    ("integral", "protons", "assumed"),
    [(7.9, SILICON, "e/A^3"), (3.97, SILICON, "e/bohr^3"), (500.0, SILICON, "e/bohr^3"), (8.0, (), "e/bohr^3")],
)
def test_a_unit_that_electrons_do_not_tell_is_an_assumption(integral, protons, assumed):
    with pytest.warns(UserWarning, match=rf"x: no unit is stated: .*{assumed.replace('^', '.')} is assumed.*unit="):
        assert units.unit_by_count("x", integral, protons) == assumed

"""What a file holds: format, grid, channels, electrons, cell, atoms, and whether these fit together."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from matminer_ed3d.density import UNITS, Density
from matminer_ed3d.labels import space_group_number, space_group_symbol
from matminer_ed3d.readers.kinds import TITLES
from matminer_ed3d.sources import read_density, read_structure, what_is

__all__ = ["file_info", "readable"]

SYMPREC = 0.01  # Å; the atoms as they are written down
LARGEST_NEGATIVE_SHARE = 1e-3  # of the weight: augmented and interpolated densities dip below 0 a little
LARGEST_SPIN_EXCESS = 1e-3  # of the electrons: as above
ELECTRON_TOLERANCE = 0.01  # of the sum, from a whole number, or 1e-4 of it; a mean over a coarse grid is no exact integral
COARSEST_SPACING = 0.25  # Å; the voxels of the samples
LARGEST_SPACING_RATIO = 1.5
SMALLEST_DISTANCE = 0.5  # Å; the H-H bond is 0.74


def file_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file and describe it.

    Parameters
    ----------
    path : str or PathLike
        A density or a structure of any known format; the content decides.

    Returns
    -------
    dict
        JSON values. Always ``file``, ``n_bytes``, ``format``, ``lattice`` (lengths in Å, angles in degrees, volume in Å³, handedness),
        ``structure`` (None without atoms), ``checks`` (a list of ``name``, ``ok``, ``detail``) and ``remarks`` (what the reader warned of).
        Of a density also ``quantity``, ``unit``, ``is_voxel_mean``, ``grid_shape``, ``grid_spacing`` (Å), ``channels`` (minimum, mean,
        maximum and, of an electron density, the integral in electrons), ``n_electrons`` and ``n_protons``, the sum of Z: None where they
        do not apply.

    Raises
    ------
    DensityFileError
        If the file cannot be read; names the file and the line.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kind, holds_grid = what_is(path)
        if holds_grid:
            density = read_density(path)
            structure, lattice = density.structure, density.lattice
        else:
            density, structure = None, read_structure(path)
            lattice = np.asarray(structure.lattice.matrix)
    name = os.fspath(path)
    answer: dict[str, Any] = {"file": name, "n_bytes": Path(path).stat().st_size, "format": TITLES[kind]}
    if density is not None:
        answer |= _describe_density(density)
    answer["lattice"] = _describe_lattice(lattice)
    answer["structure"] = None if structure is None or len(structure) == 0 else _describe_structure(structure)
    if density is not None:
        answer["n_protons"] = None if answer["structure"] is None else _n_protons(structure)
    answer["checks"] = [
        *([] if density is None else _density_checks(density, answer)),
        *([] if answer["structure"] is None else _structure_checks(structure)),
    ]
    texts = dict.fromkeys(str(warning.message).removeprefix(f"{name}: ").removeprefix(name) for warning in caught)
    answer["remarks"] = list(texts)
    return answer


def _check(name: str, ok: bool | np.bool_, detail: str) -> dict[str, Any]:
    return {"name": name, "ok": bool(ok), "detail": detail}


def _describe_density(density: Density) -> dict[str, Any]:
    counts_electrons = density.quantity == "electron_density"
    channels = {}
    for name, values in density.channels.items():
        low, mean, high = float(values.min()), float(values.mean()), float(values.max())
        channels[name] = {"min": low, "mean": mean, "max": high}
        if counts_electrons:
            channels[name]["integral"] = mean * density.volume
    return {
        "quantity": density.quantity,
        "unit": UNITS[density.quantity],
        "is_voxel_mean": density.is_voxel_mean,
        "grid_shape": list(density.grid_shape),
        "grid_spacing": [float(x) for x in density.grid_spacing],
        "channels": channels,
        "n_electrons": density.n_electrons() if counts_electrons else None,
    }


def _describe_lattice(lattice: np.ndarray) -> dict[str, Any]:
    lengths = np.linalg.norm(lattice, axis=1)
    unit = lattice / lengths[:, None]
    cosines = [unit[1] @ unit[2], unit[2] @ unit[0], unit[0] @ unit[1]]
    determinant = float(np.linalg.det(lattice))
    return {
        "lengths": [float(x) for x in lengths],
        "angles": [float(x) for x in np.degrees(np.arccos(np.clip(cosines, -1, 1)))],
        "volume": abs(determinant),
        "right_handed": determinant > 0,
        "vectors": lattice.tolist(),
    }


def _describe_structure(structure: Any) -> dict[str, Any]:
    shares: Counter[str] = Counter()
    for site in structure:
        for species, occupancy in site.species.items():
            shares[str(species)] += occupancy
    given = structure.site_properties
    anisotropic = _n_given(given, "U11_cif")
    isotropic = max(_n_given(given, "u_iso"), _n_given(given, "b_iso"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pymatgen sorts by electronegativity, and noble gases have none
        formula = structure.composition.reduced_formula
    try:
        number = space_group_number(structure, symprec=SYMPREC)
    except ValueError:  # atoms that overlap; a check says so
        number = None
    return {
        "formula": formula,
        "n_sites": len(structure),
        "atoms_per_cell": {name: round(float(share), 6) for name, share in shares.items()},
        "n_disordered_sites": sum(not site.is_ordered for site in structure),
        "n_isotropic_displacements": isotropic,
        "n_anisotropic_displacements": anisotropic,
        "space_group_number": number,
        "space_group_symbol": None if number is None else space_group_symbol(number),
        "symprec": SYMPREC,
    }


def _n_given(properties: dict[str, Any], name: str) -> int:
    return sum(value is not None for value in properties.get(name, ()))


def _n_protons(structure: Any) -> float:
    return float(sum(getattr(species, "Z", 0) * occupancy for site in structure for species, occupancy in site.species.items()))


def _density_checks(density: Density, answer: dict[str, Any]) -> list[dict[str, Any]]:
    shape, spacing = density.grid_shape, density.grid_spacing
    n_values = len(density.channels) * int(np.prod(shape))
    checks = [_check("finite values", True, f"all {n_values}")]  # what is not finite is no Density
    if density.quantity == "electron_density":
        checks += _electron_checks(density, answer["n_protons"])
    checks.append(
        _check(
            "fine grid",
            spacing.max() <= COARSEST_SPACING,
            f"at most {spacing.max():.4g} Å between points; samples have {COARSEST_SPACING} Å",
        )
    )
    ratio = float(spacing.max() / spacing.min())
    checks.append(_check("even grid", ratio <= LARGEST_SPACING_RATIO, f"spacings along a, b, c differ by a factor of {ratio:.3g}"))
    return checks


def _electron_checks(density: Density, n_protons: float | None) -> list[dict[str, Any]]:
    total = density.channels["total"]
    n_electrons = density.n_electrons()
    weight = float(np.abs(total).sum())
    negative = abs(float(total.sum(where=total < 0))) / weight if weight else 0.0
    checks = [
        _check(
            "no negative density",
            negative <= LARGEST_NEGATIVE_SHARE,
            f"{100 * negative:.3g} % of the weight, lowest {total.min():.4g} e/Å³",
        )
    ]
    nearest = round(n_electrons)
    near = nearest > 0 and abs(n_electrons - nearest) <= max(ELECTRON_TOLERANCE, 1e-4 * nearest)
    checks.append(_check("whole electrons", near, f"{n_electrons:.6g}, the nearest whole number is {nearest}"))
    if n_protons is not None:
        if n_electrons > n_protons + 1:
            detail = "more than the nuclei: another unit, density times volume, a grid too coarse for the cores, or an anion?"
        elif n_electrons > n_protons - 0.5:
            detail = "all electrons"
        else:
            detail = "a part of them: the valence of pseudopotentials, as a rule"
        checks.append(
            _check(
                "electrons and nuclei", 0 < n_electrons <= n_protons + 1, f"{n_electrons:.6g} electrons, {n_protons:.6g} protons: {detail}"
            )
        )
    spins = [values for name, values in density.channels.items() if name != "total"]
    if spins:
        length = np.sqrt(sum(np.square(values) for values in spins))
        excess = float(np.maximum(length - np.abs(total), 0).sum()) / weight if weight else 0.0
        checks.append(
            _check("spin within density", excess <= LARGEST_SPIN_EXCESS, f"{100 * excess:.3g} % of the weight beyond |diff| = total")
        )
    return checks


def _structure_checks(structure: Any) -> list[dict[str, Any]]:
    first, second, _, distances = structure.get_neighbor_list(SMALLEST_DISTANCE)
    detail = f"none nearer than {SMALLEST_DISTANCE} Å to another"
    if len(distances):
        at = int(np.argmin(distances))
        names = [structure[int(i)].species_string for i in (first[at], second[at])]
        detail = f"{len(distances) // 2} pairs nearer than {SMALLEST_DISTANCE} Å, {names[0]} and {names[1]} at {distances[at]:.3g} Å"
    return [_check("atoms apart", len(distances) == 0, detail)]


def readable(answer: dict[str, Any]) -> str:
    """Lay out an answer of :func:`file_info` for a person, in lines of at most about 100 characters."""
    lines = [answer["file"]]

    def say(title: str, text: str) -> None:
        lines.append(f"  {title:<15}{text}")

    say("format", f"{answer['format']}, {answer['n_bytes']} bytes")
    if "quantity" in answer:
        mean = ", mean over voxels" if answer["is_voxel_mean"] else ""
        say("quantity", f"{answer['quantity'].replace('_', ' ')}, {answer['unit']}{mean}")
        spacing = " x ".join(f"{x:.4f}" for x in answer["grid_spacing"])
        say("grid", f"{' x '.join(map(str, answer['grid_shape']))} points, {spacing} Å")
        for rank, (name, found) in enumerate(answer["channels"].items()):
            integral = f", integral {found['integral']:.6g} e" if "integral" in found else ""
            say("channels" if rank == 0 else "", f"{name}: {found['min']:.4g} to {found['max']:.4g}, mean {found['mean']:.4g}{integral}")
    cell = answer["lattice"]
    say("cell", "  ".join(f"{x:.4f}" for x in cell["lengths"]) + " Å   " + "  ".join(f"{x:.3f}" for x in cell["angles"]) + "°")
    say("", f"{cell['volume']:.4f} Å³, {'right' if cell['right_handed'] else 'left'}-handed")
    atoms = answer["structure"]
    if atoms is None:
        say("atoms", "none in the file")
    else:
        contents = " ".join(f"{name} {share:g}" for name, share in atoms["atoms_per_cell"].items())
        say("atoms", f"{atoms['formula']}, {atoms['n_sites']} sites ({atoms['n_disordered_sites']} disordered): {contents}")
        moving = atoms["n_isotropic_displacements"], atoms["n_anisotropic_displacements"]
        say("displacements", f"{moving[0]} isotropic, {moving[1]} anisotropic" if any(moving) else "none in the file")
        group = "not found" if atoms["space_group_number"] is None else f"{atoms['space_group_number']}  {atoms['space_group_symbol']}"
        say("space group", f"{group}  (of the atoms, symprec {atoms['symprec']} Å)")
    for rank, check in enumerate(answer["checks"]):
        say("checks" if rank == 0 else "", f"{'ok ' if check['ok'] else 'NO '} {check['name']}: {check['detail']}")
    for rank, remark in enumerate(answer["remarks"]):
        say("remarks" if rank == 0 else "", remark)
    return "\n".join(lines)

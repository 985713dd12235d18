"""Write matminer_ed3d/data/scattering_factors.json: X-ray scattering factors of atoms and ions as sums of Gaussians.

Both tables are f(s) = sum_i a_i exp(-b_i s^2) + c with s = sin(theta) / lambda in 1/Å, coefficients as published:

- "it92": four Gaussians, International Tables for Crystallography C (1992), table 6.1.1.4; 98 atoms and 112 ions, from gemmi.
- "waasmaier_kirfel": five Gaussians, D. Waasmaier & A. Kirfel, Acta Cryst. A 51, 416-431 (1995); 98 atoms and 111 ions, from xraydb,
  compared with periodictable. The two valence states, Cval and Siva, are left out: they are no ions.

Left out as well are ions that make no density, and listed in the file: those with a Gaussian that grows (b < -0.02 Å²), which ends all
meaning beyond the s of the fit, and those whose core is not that of their atom (f differs by more than 0.2 between s = 0.9 and 2 1/Å,
where no valence electron is left; two of them, Ru4+ and Bi5+ of "it92", by 3 and 16 electrons).

    pip install gemmi xraydb periodictable
    python tests/data/gen_scattering_factors.py
"""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path

import gemmi
import numpy as np
import periodictable
import xraydb

Row = list[float]  # Z, charge, a_1 to a_n, b_1 to b_n, c
SMALLEST_B = -0.02  # Å²
LARGEST_DIFFERENCE = 0.2  # electrons
OUT = Path(__file__).parents[2] / "matminer_ed3d" / "data" / "scattering_factors.json"


def shortest(value: float) -> float:
    """Decimal as printed in the tables, of the single-precision number that gemmi keeps."""
    return float(str(np.float32(value)))


def it92() -> list[Row]:
    """Read gemmi's table, ions included."""
    gemmi.IT92_set_ignore_charge(False)
    rows = []
    for z in range(1, 99):
        for charge in range(-8, 9):
            coef = gemmi.IT92_get_exact(gemmi.Element(z), charge)
            if coef is not None:
                rows.append([z, charge, *map(shortest, coef.a), *map(shortest, coef.b), shortest(coef.c)])
    return rows


def charge_of(ion: str) -> int | None:
    """Charge in a name such as Fe3+; None for a valence state."""
    found = re.fullmatch(r"([A-Z][a-z]?)(?:(\d)([+-]))?", ion)
    if found is None:
        return None
    return int((found[3] or "+") + (found[2] or "0"))


def waasmaier_kirfel() -> list[Row]:
    """Read xraydb's table."""
    rows = []
    for row in xraydb.XrayDB().get_cache("Waasmaier"):
        charge = charge_of(row.ion)
        if charge is not None:
            rows.append([row.atomic_number, charge, *json.loads(row.scale), *json.loads(row.exponents), row.offset])
    return rows


def of_periodictable() -> dict[tuple[int, int], Row]:
    """Read the same from the file that periodictable carries, by (Z, charge)."""
    text = (Path(periodictable.__file__).parent / "f0_WaasKirf.dat").read_text(encoding="latin-1")
    table = {}
    for z, ion, values in re.findall(r"^#S\s+(\d+)\s+(\S+)\s*\n#N.*\n#L.*\n(.*)$", text, re.MULTILINE):
        charge = charge_of(ion)
        if charge is not None:
            numbers = [float(word) for word in values.split()]  # a1 to a5, c, b1 to b5
            table[int(z), charge] = numbers[:5] + numbers[6:] + [numbers[5]]
    return table


def factor(row: Row, s: np.ndarray) -> np.ndarray:
    """f(s) of a row."""
    n = (len(row) - 3) // 2
    return sum(a * np.exp(-b * s**2) for a, b in zip(row[2 : 2 + n], row[2 + n : -1], strict=True)) + row[-1]


def is_sound(row: Row, atoms: dict[int, Row]) -> bool:
    """Tell whether an ion's Gaussians all fall off and its core is that of the atom."""
    n = (len(row) - 3) // 2
    s = np.linspace(0.9, 2, 12)
    return min(row[2 + n : -1]) >= SMALLEST_B and np.abs(factor(row, s) - factor(atoms[int(row[0])], s)).max() <= LARGEST_DIFFERENCE


def entry(rows: list[Row], atoms: dict[int, Row], source: str, taken_from: str) -> dict[str, object]:
    """One table of the file."""
    left_out = [[int(row[0]), int(row[1])] for row in sorted(rows) if not is_sound(row, atoms)]
    kept = [row for row in sorted(rows) if [row[0], row[1]] not in left_out]
    assert all(charge for _, charge in left_out)
    return {"source": source, "taken_from": taken_from, "left_out": left_out, "rows": kept}


def main() -> None:
    """Write the file."""
    wk = waasmaier_kirfel()
    atoms = {int(row[0]): row for row in wk if row[1] == 0}
    other = of_periodictable()
    assert len(wk) == len(other) == 209
    for z, charge, *values in wk:
        assert np.allclose(values, other[int(z), int(charge)], rtol=0, atol=1e-9), (z, charge, values, other[int(z), int(charge)])
    it_c, a51 = (
        "International Tables for Crystallography, vol. C (1992), table 6.1.1.4",
        "D. Waasmaier & A. Kirfel, Acta Cryst. A 51, 416 (1995)",
    )
    compared = f"xraydb {version('xraydb')}, compared with periodictable {version('periodictable')}"
    tables = {
        "it92": entry(it92(), atoms, it_c, f"gemmi {version('gemmi')}"),
        "waasmaier_kirfel": entry(wk, atoms, a51, compared),
    }
    lines = ['{"columns": "Z, charge, a_1 to a_n, b_1 to b_n (Å²), c; n is 4 or 5"']
    for name, table in tables.items():
        rows = ",\n".join(json.dumps([int(row[0]), int(row[1]), *row[2:]]) for row in table["rows"])
        head = json.dumps({key: value for key, value in table.items() if key != "rows"}, ensure_ascii=False)[:-1]
        lines.append(f',\n"{name}": {head}, "rows": [\n{rows}\n]}}')
    OUT.write_text("".join(lines) + "}\n", encoding="utf-8")
    print({name: (len(table["rows"]), table["left_out"]) for name, table in tables.items()})


if __name__ == "__main__":
    main()

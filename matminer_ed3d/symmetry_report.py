"""One HTML page that shows the symmetry of a density and its proof: :func:`write_report`. Needs the extra ``report``."""

from __future__ import annotations

import base64
import html
import itertools
import json
import os
import warnings
from collections.abc import Sequence
from fractions import Fraction
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from matminer_ed3d import grids
from matminer_ed3d.atomic_files import replacing
from matminer_ed3d.density import Density
from matminer_ed3d.file_info import file_info
from matminer_ed3d.labels import extinction_group_symbol
from matminer_ed3d.sources import as_density
from matminer_ed3d.symmetry import Candidate, DensitySymmetry, Operation, find_symmetry
from matminer_ed3d.symmetry.operations import correlation_map, lattice_operations
from matminer_ed3d.symmetry.spectrum import Spectrum, spectrum_of

__all__ = ["isosurface", "operation_symbol", "residual_sections", "triplet", "write_report"]

SHARES = (0.5, 0.75, 0.9)  # of the electrons, inside of each surface
LONGEST_AXIS = 36  # points, of the grid of the surfaces
LEAST_POINTS = 8  # of an axis of that grid
SURFACE_BYTES = 420_000  # of all surfaces; plotly.js has 4.8 MB, and the page should stay below 6
SECTION_BYTES = 420_000  # of all sections
FINE_SECTION = 36  # points; sections of fewer are interpolated
COARSER = 1.25  # a step, where there are too many bytes
LARGEST_SHOWN_EVIDENCE = 120.0  # nats; longer bars are cut, and their text says the number
NO_NOISE = 1e-12  # share of the power; below it is rounding
LEAST_GLIDE = 0.1  # Å; translations of operations that are nearly there are not exact
SYMBOLS = {
    (1, 3): "1",
    (1, -1): "2",
    (1, 0): "3",
    (1, 1): "4",
    (1, 2): "6",
    (-1, -3): "-1",
    (-1, 1): "m",
    (-1, 0): "-3",
    (-1, -1): "-4",
    (-1, -2): "-6",
}  # of (determinant, trace)
COLOURS = {"found": "#1b7837", "subgroup": "#4a7fb5", "supergroup": "#c2703d"}
PLANES = ((0, 1), (1, 2), (0, 2))
# The six tetrahedra of a cube around its diagonal, as numbers 4 i + 2 j + k of corners.
TETRAHEDRA = np.array([[0, 1 << a, (1 << a) + (1 << b), 7] for a, b, _ in itertools.permutations(range(3))])


def write_report(
    source: Density | str | os.PathLike[str], out: str | os.PathLike[str], *, symprec: float = 0.01, title: str | None = None
) -> DensitySymmetry:
    """Find the symmetry of a density and write a page that shows it with its proof.

    The page is one HTML file that needs no network: the group and its probability, the evidence for and against its neighbours, the
    residual of every rotation that the lattice allows as a map over its translation, the tables, and the density to turn.

    Parameters
    ----------
    source : Density, str or PathLike
        A density, or a file of one or of a structure, whose density of independent atoms is taken.
    out : str or PathLike
        Replaced, all or nothing, if it exists.
    symprec : float
        Å; see :func:`matminer_ed3d.symmetry.find_symmetry`.
    title : str, optional
        By default the file's name, or "Density".

    Returns
    -------
    DensitySymmetry
        What the page shows.

    Raises
    ------
    ImportError
        If plotly is not installed.
    DensityFileError
        If the file cannot be read; names the file and the line.
    ValueError
        If `out` is the file that is read, or the density is constant.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError("a report needs plotly; install it with: pip install 'matminer_ed3d[report]'") from error

    path = None if isinstance(source, Density) else Path(source)
    if path is not None and path.exists() and Path(out).exists() and path.samefile(out):
        raise ValueError(f"{os.fspath(out)}: the report would replace the file that it is about; choose another --out")
    info = None if path is None else file_info(path)
    with warnings.catch_warnings():
        if info is not None:
            warnings.simplefilter("ignore", UserWarning)  # they are among the remarks of `info`
        density = as_density(source)
    symmetry = find_symmetry(density, symprec=symprec)
    # The same coefficients as the search has seen.
    spectrum = spectrum_of(density).in_basis(symmetry.basis)
    title = title or (path.name if path is not None else "Density")
    rows = _operation_rows(symmetry, spectrum)
    d_min, sections = residual_sections(spectrum, [row[0] for row in rows])
    figures = {
        "evidence": json.loads(_evidence_figure(symmetry).to_json()),
        "surface": json.loads(_surface_figure(density).to_json()),
        "sections": [{"title": _section_title(row, symmetry), "planes": planes} for row, planes in zip(rows, sections, strict=True)],
    }
    template = resources.files("matminer_ed3d").joinpath("data/symmetry_report.html").read_text(encoding="utf-8")
    page = Template(template).substitute(
        title=html.escape(title),
        head=_head(density, symmetry, info),
        checks=_checks(info),
        d_min=f"{d_min:.2f}",
        options="".join(f'<option value="{i}">{html.escape(_section_title(row, symmetry))}</option>' for i, row in enumerate(rows)),
        operations=_operation_table(rows, symmetry),
        candidates=_candidate_table(symmetry.candidates),
        shares=", ".join(f"{share:.0%}" for share in SHARES),
        plotly=get_plotlyjs().replace("</script", "<\\/script"),
        figures=json.dumps(figures).replace("<", "\\u003c"),
    )
    with replacing(out) as file:
        file.write(page.encode())
    return symmetry


# Operations by their names


def triplet(rotation: Int[np.ndarray, "3 3"], translation: Float[np.ndarray, "3"]) -> str:
    """Write an operation as in International Tables, such as ``-y+1/2,x,z``; translations that are no fraction get four decimals.

    Examples
    --------
    >>> triplet(np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]), np.array([0.5, 0.0, 0.12345]))
    '-y+1/2,x,z+0.1235'
    """
    parts = []
    for row, shift in zip(rotation, translation, strict=True):
        terms = "".join(f"{'+' if n > 0 else '-'}{abs(n) if abs(n) != 1 else ''}{axis}" for n, axis in zip(row, "xyz", strict=True) if n)
        shift = float(shift) % 1.0
        fraction = Fraction(shift).limit_denominator(24)
        if abs(float(fraction) - shift) > 1e-5:
            terms += f"+{shift:.4f}"
        elif fraction % 1:
            terms += f"+{fraction}"
        parts.append(terms.removeprefix("+"))
    return ",".join(parts)


def operation_symbol(rotation: Int[np.ndarray, "3 3"], translation: Float[np.ndarray, "3"], lattice: Float[np.ndarray, "3 3"]) -> str:
    """Name an operation in a primitive lattice: ``-3``, ``m``, ``g`` (any glide plane), ``4``, ``4_1``.

    Lattice translations make operations of several kinds of one: the one with the shortest screw or glide counts.
    """
    w = np.asarray(rotation, dtype=float)
    symbol = SYMBOLS[round(float(np.linalg.det(w))), round(float(np.trace(w)))]
    if symbol != "m" and (symbol == "1" or symbol.startswith("-")):
        return symbol
    order = 2 if symbol == "m" else int(symbol)
    mean = np.mean([np.linalg.matrix_power(w, i) for i in range(order)], axis=0)
    near = np.array(list(itertools.product((-1, 0, 1), repeat=3)), dtype=float)
    along = (translation + near) @ mean.T @ lattice  # Å, what no choice of origin takes away
    if symbol == "m":
        return "m" if np.linalg.norm(along, axis=1).min() < LEAST_GLIDE else "g"
    axes = np.array(list(itertools.product(range(-3, 4), repeat=3)), dtype=float)
    axes = axes[(np.abs(axes @ w.T - axes).max(axis=1) < 1e-9) & (axes != 0).any(axis=1)] @ lattice
    axis = axes[np.argmin(np.linalg.norm(axes, axis=1))]
    off_axis = np.cross(axis, np.eye(3)[np.argmin(np.abs(axis))])
    turned = np.linalg.solve(lattice.T, off_axis) @ w.T @ lattice
    if order > 2 and np.dot(np.cross(off_axis, turned), axis) < 0:
        axis = -axis  # seen against it, the rotation is anticlockwise
    steps = order * (along @ axis) / (axis @ axis)
    n_steps = int((np.round(steps) % order).min())
    return symbol if n_steps == 0 else f"{symbol}_{n_steps}"


Row = tuple[Operation, str]  # an operation and what is said of it


def _operation_rows(symmetry: DensitySymmetry, spectrum: Spectrum) -> list[Row]:
    """Every rotation that the lattice allows with its best translation: those of the group, the rejected, those without a peak."""
    rows: list[Row] = [(operation, "holds") for operation in symmetry.operations]
    rows += [(operation, "broken") for operation in symmetry.rejected]
    seen = {operation.rotation.tobytes() for operation, _ in rows}
    for rotation in lattice_operations(symmetry.lattice, symmetry.symprec):
        if rotation.astype(symmetry.operations[0].rotation.dtype).tobytes() in seen:
            continue
        residual = _residual_map(spectrum, rotation)
        best = np.unravel_index(np.argmin(residual), residual.shape)
        nan = float("nan")
        rows.append((Operation(rotation, np.array(best) / residual.shape, float(residual[best]), nan, nan, nan, nan), "far from it"))
    return rows


def _residual_map(spectrum: Spectrum, rotation: Int[np.ndarray, "3 3"]) -> Float[np.ndarray, "nx ny nz"]:
    """1 - C(t): the weighted residual of {W|t} for every translation; reflections without an image agree with themselves."""
    rows = spectrum.images(rotation)
    power = spectrum.weights * np.abs(spectrum.coefficients) ** 2
    return 1 - (correlation_map(spectrum, rows).astype(float) + power[rows < 0].sum()) / power.sum()


def residual_sections(spectrum: Spectrum, operations: Sequence[Operation]) -> tuple[float, list[list[dict[str, Any]]]]:
    """Sections through the map of the residual against the translation, each through its operation's own translation.

    Parameters
    ----------
    spectrum : Spectrum
    operations : sequence of Operation
        In the cell of `spectrum`.

    Returns
    -------
    float
        Resolution of the maps in Å: that of `spectrum`, or coarser where they would be too large for a page.
    list of list of dict
        For each operation the planes t_a t_b, t_b t_c and t_a t_c: ``axes``, their names; ``z``, the residual in per cent as plotly
        takes it, rows along the second axis; ``x`` and ``y``, first coordinate and step; ``peak``; ``fixed``, the third coordinate.
    """
    while len(operations) * sum(_n_pixels(spectrum, plane) for plane in PLANES) * 4 / 3 > SECTION_BYTES:
        spectrum = spectrum.cut(COARSER / spectrum.q_length.max())
    return float(1 / spectrum.q_length.max()), [_sections(spectrum, operation) for operation in operations]


def _n_pixels(spectrum: Spectrum, plane: tuple[int, int]) -> int:
    return int(np.prod([max(spectrum.map_shape[axis], FINE_SECTION) for axis in plane]))


def _sections(spectrum: Spectrum, operation: Operation) -> list[dict[str, Any]]:
    at = operation.translation % 1.0
    centred = grids.shift_origin(_residual_map(spectrum, operation.rotation), at)
    planes = []
    for first, second in PLANES:
        third = 3 - first - second
        section = np.take(centred, 0, axis=third)
        shape = tuple(max(n, FINE_SECTION) for n in section.shape)
        section = grids.fourier_resample(section[:, :, None], (*shape, 1))[:, :, 0]
        # The peak is a pixel; the pixels go from the last below 0 to the first from 1 on.
        before = [int(np.floor(at[axis] * n)) for axis, n in zip((first, second), shape, strict=True)]
        section = np.pad(np.roll(section, before, axis=(0, 1)), 1, mode="wrap")
        per_cent = np.clip(np.round(100 * section), 0, 255).astype(np.uint8).T
        starts = [float(at[axis] - (steps + 1) / n) for axis, steps, n in zip((first, second), before, shape, strict=True)]
        planes.append(
            {
                "axes": ["abc"[first], "abc"[second], "abc"[third]],
                "z": {
                    "dtype": "u1",
                    "bdata": base64.b64encode(np.ascontiguousarray(per_cent).tobytes()).decode(),
                    "shape": f"{per_cent.shape[0]}, {per_cent.shape[1]}",
                },
                "x": [starts[0], 1 / shape[0]],
                "y": [starts[1], 1 / shape[1]],
                "peak": [float(at[first]), float(at[second])],
                "fixed": float(at[third]),
            }
        )
    return planes


# The density


def isosurface(
    values: Float[np.ndarray, "nx ny nz"], level: float, lattice: Float[np.ndarray, "3 3"]
) -> tuple[Float[np.ndarray, "n_vertices 3"], Int[np.ndarray, "n_triangles 3"]]:
    """Triangulate the surface of one level in a cell of any shape by marching tetrahedra.

    Parameters
    ----------
    values : (nx, ny, nz) float
        On the points (i / (nx - 1), ...), both ends included.
    level : float
        The surface parts what is above from what is not.
    lattice : (3, 3) float
        Rows in Å.

    Returns
    -------
    vertices : (n_vertices, 3) float
        Cartesian, Å, by linear interpolation along the edges of the tetrahedra; none twice.
    triangles : (n_triangles, 3) int
        Rows of `vertices`; anticlockwise from below the level, in a right-handed cell.

    Notes
    -----
    A. Doi and A. Koide, IEICE Transactions E74 (1991) 214. Every face of a tetrahedron is cut in the same way from both of its sides,
    so the surface has no holes but at the faces of the cell.
    """
    shape = np.array(values.shape)
    flat = values.ravel()
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    corners = np.array(list(itertools.product((0, 1), repeat=3))) @ strides
    first = np.stack(np.meshgrid(*(np.arange(n - 1) for n in shape), indexing="ij"), axis=-1).reshape(-1, 3) @ strides
    above = flat[first[:, None] + corners] > level
    first = first[above.any(axis=1) & ~above.all(axis=1)]
    points = (first[:, None] + corners)[:, TETRAHEDRA].reshape(-1, 4)
    above = flat[points] > level
    order = np.argsort(~above, axis=1, kind="stable")
    points, n_above = np.take_along_axis(points, order, axis=1), above.sum(axis=1)
    edges, inside = [], []  # of each triangle: the three edges that its corners lie on, and a point above the level
    for count, cuts in (
        (1, (((0, 1), (0, 2), (0, 3)),)),
        (2, (((0, 2), (0, 3), (1, 3)), ((0, 2), (1, 3), (1, 2)))),
        (3, (((0, 3), (1, 3), (2, 3)),)),
    ):
        chosen = points[n_above == count]
        for cut in cuts:
            edges.append(chosen[:, np.array(cut)])
            inside.append(chosen[:, 0])
    ends = np.sort(np.concatenate(edges), axis=2)
    keys, corner = np.unique(ends[..., 0] * flat.size + ends[..., 1], return_inverse=True)
    low, high = np.divmod(keys, flat.size)
    share = ((level - flat[low]) / (flat[high] - flat[low]))[:, None]
    places = np.stack(np.unravel_index(np.arange(flat.size), values.shape), axis=1) / (shape - 1)
    vertices = places[low] + share * (places[high] - places[low])
    triangles = corner.reshape(-1, 3)
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    outward = np.einsum("ij,ij->i", np.cross(b - a, c - a), a - places[np.concatenate(inside)])
    triangles[outward < 0] = triangles[outward < 0][:, ::-1]
    return vertices @ lattice, triangles


def _level(values: Float[np.ndarray, "nx ny nz"], share: float) -> float:
    """Value above which a share of all that is positive lies."""
    falling = np.sort(values.ravel())[::-1]
    sums = np.cumsum(np.maximum(falling, 0))
    at = int(np.searchsorted(sums, share * sums[-1]))
    return float(0.5 * (falling[min(at, len(falling) - 1)] + falling[min(at + 1, len(falling) - 1)]))


def _surfaces(density: Density) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Level, vertices and triangles for each of `SHARES`, on the finest grid whose surfaces are not too many bytes."""
    rho = density.channels["total"]
    lengths = np.linalg.norm(density.lattice, axis=1)
    longest = float(LONGEST_AXIS)
    while True:
        shape = tuple(max(LEAST_POINTS, round(longest * length / lengths.max())) for length in lengths)
        # Points that are left out would make ripples around atoms; means do not.
        values = grids.mean_resample(rho, tuple(min(n, m) for n, m in zip(shape, rho.shape, strict=True)))
        values = np.pad(grids.fourier_resample(values, shape), (0, 1), mode="wrap")
        levels = [_level(values[:-1, :-1, :-1], share) for share in SHARES]
        surfaces = [(level, *isosurface(values, level, density.lattice)) for level in levels]
        n_bytes = sum(4 / 3 * (12 * len(vertices) + 12 * len(triangles)) for _, vertices, triangles in surfaces)
        if n_bytes <= SURFACE_BYTES or longest <= LEAST_POINTS:
            return surfaces
        longest /= COARSER**0.5


def _surface_figure(density: Density) -> Any:
    from plotly import graph_objects as go

    figure = go.Figure()
    for share, (level, vertices, triangles) in zip(SHARES, _surfaces(density), strict=True):
        small = np.uint16 if len(vertices) < 1 << 16 else np.uint32
        x, y, z = vertices.astype(np.float32).T.copy()
        i, j, k = triangles.astype(small).T.copy()
        figure.add_trace(
            go.Mesh3d(
                x=x, y=y, z=z, i=i, j=j, k=k, color="#e0a030", opacity=1, flatshading=False, hoverinfo="skip", visible=share == 0.75,
                lighting={"ambient": 0.5, "diffuse": 0.7, "specular": 0.15, "facenormalsepsilon": 1e-15, "vertexnormalsepsilon": 1e-15},
                name=f"{level:.3g} e/Å³", showlegend=True,
            )
        )  # fmt: skip
    n_surfaces = len(figure.data)
    edges = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1], [0, 0, 1]], float)
    gap = np.full((1, 3), np.nan)
    uprights = [np.array([[a, b, 0], [a, b, 1]], float) for a, b in ((1, 0), (1, 1), (0, 1))]
    lines = np.concatenate([edges, *(part for upright in uprights for part in (gap, upright))]) @ density.lattice
    figure.add_trace(
        go.Scatter3d(
            x=lines[:, 0], y=lines[:, 1], z=lines[:, 2], mode="lines", line={"color": "#555", "width": 3}, hoverinfo="skip", name="cell"
        )
    )
    ends = density.lattice * 1.06
    figure.add_trace(
        go.Scatter3d(x=ends[:, 0], y=ends[:, 1], z=ends[:, 2], mode="text", text=["a", "b", "c"], hoverinfo="skip", showlegend=False)
    )
    for name, coords in _atoms(density.structure).items():
        x, y, z = (coords @ density.lattice).T
        figure.add_trace(go.Scatter3d(x=x, y=y, z=z, mode="markers", marker={"size": 4}, name=html.escape(name), hoverinfo="name"))
    buttons = [
        {
            "label": f"{share:.0%} of the electrons",
            "method": "restyle",
            "args": [{"visible": [i == shown for i in range(n_surfaces)]}, list(range(n_surfaces))],
        }
        for shown, share in enumerate(SHARES)
    ]
    axis = {"visible": False}
    extent = np.ptp(lines[np.isfinite(lines[:, 0])], axis=0)
    ratio = dict(zip("xyz", (1.5 * extent / extent.max()).tolist(), strict=True))
    figure.update_layout(
        template="none",
        scene={
            "xaxis": axis,
            "yaxis": axis,
            "zaxis": axis,
            "aspectmode": "manual",
            "aspectratio": ratio,
            "camera": {"projection": {"type": "orthographic"}},
        },
        margin={"l": 0, "r": 0, "t": 40, "b": 0},
        updatemenus=[{"buttons": buttons, "active": SHARES.index(0.75), "x": 0, "xanchor": "left", "y": 1.08, "yanchor": "top"}],
        height=560,
    )
    return figure


def _atoms(structure: Any) -> dict[str, Float[np.ndarray, "n 3"]]:
    """Fractional coordinates of each species, those on the faces of the cell on both."""
    places: dict[str, list[np.ndarray]] = {}
    for site in structure or ():
        inside = np.asarray(site.frac_coords) % 1.0
        images = [inside + shift for shift in itertools.product((-1, 0, 1), repeat=3)]
        kept = [image for image in images if (image > -1e-3).all() and (image < 1 + 1e-3).all()]
        places.setdefault(site.species_string, []).extend(kept)
    return {name: np.array(coords) for name, coords in places.items()}


# The rest of the page


def _evidence_figure(symmetry: DensitySymmetry) -> Any:
    from plotly import graph_objects as go

    candidates = list(symmetry.candidates)
    figure = go.Figure()
    names = [f"{i + 1}. {c.symbol} ({c.space_group_number})" for i, c in enumerate(candidates)]
    for relation, colour in COLOURS.items():
        chosen = [(name, c) for name, c in zip(names, candidates, strict=True) if c.relation == relation]
        if chosen:
            figure.add_trace(
                go.Bar(
                    y=[name for name, _ in chosen],
                    x=[float(np.clip(c.log_evidence, -LARGEST_SHOWN_EVIDENCE, LARGEST_SHOWN_EVIDENCE)) for _, c in chosen],
                    text=[_number(c.log_evidence) for _, c in chosen],
                    customdata=[
                        [_number(c.probability), c.n_operations, _number(c.displacement), _number(c.scattering_difference)]
                        for _, c in chosen
                    ],
                    hovertemplate="%{y}<br>log evidence against it %{text}<br>probability %{customdata[0]}<br>%{customdata[1]} operations"
                    "<br>displacement %{customdata[2]} Å<br>scattering difference %{customdata[3]}<extra></extra>",
                    orientation="h",
                    marker={"color": colour},
                    name=relation,
                    textposition="outside",
                    cliponaxis=False,
                )
            )
    figure.update_layout(
        template="none",
        yaxis={"categoryorder": "array", "categoryarray": names[::-1], "automargin": True},
        xaxis={"title": {"text": "log evidence of the group found against this one (nats)"}, "zeroline": True, "automargin": True},
        margin={"l": 10, "r": 60, "t": 30, "b": 50},
        height=110 + 26 * len(names),
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"},
        showlegend=True,
    )
    return figure


def _number(value: float) -> str:
    if np.isnan(value):
        return "–"
    return f"{value:.3g}" if np.isfinite(value) else ("∞" if value > 0 else "-∞")


def _residual(value: float) -> str:
    return "< 1e-12" if value < 1e-12 else _number(value)


def _section_title(row: Row, symmetry: DensitySymmetry) -> str:
    operation, verdict = row
    symbol = operation_symbol(operation.rotation, operation.translation, symmetry.lattice)
    return f"{symbol}   {triplet(operation.rotation, operation.translation)}   residual {_residual(operation.residual)}, {verdict}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _operation_table(rows: Sequence[Row], symmetry: DensitySymmetry) -> str:
    heads = (
        "type",
        "operation",
        "translation",
        "± Å",
        "residual",
        "displacement, Å",
        "scattering difference",
        "log odds broken",
        "verdict",
    )
    return _table(
        heads,
        [
            (
                operation_symbol(o.rotation, o.translation, symmetry.lattice),
                triplet(o.rotation, o.translation),
                " ".join(f"{t:.4f}" for t in o.translation),
                _number(o.translation_uncertainty),
                _residual(o.residual),
                *map(_number, (o.displacement, o.scattering_difference, o.log_evidence)),
                verdict,
            )
            for o, verdict in rows
        ],
    )


def _candidate_table(candidates: Sequence[Candidate]) -> str:
    heads = (
        "space group",
        "number",
        "relation",
        "operations",
        "log evidence against it",
        "displacement, Å",
        "scattering difference",
        "probability",
    )
    return _table(
        heads,
        [
            (
                c.symbol,
                str(c.space_group_number),
                c.relation,
                str(c.n_operations),
                *map(_number, (c.log_evidence, c.displacement, c.scattering_difference, c.probability)),
            )
            for c in candidates
        ],
    )


def _head(density: Density, symmetry: DensitySymmetry, info: dict[str, Any] | None) -> str:
    structure, group = density.structure, symmetry.group
    entries = []
    if info is not None:
        entries += [("file", info["file"]), ("format", info["format"])]
        if "grid_shape" not in info:
            entries.append(("density", "of independent atoms, made of the structure"))
    if structure is not None and len(structure):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # noble gases have no electronegativity to sort by
            entries.append(("formula", structure.composition.reduced_formula))
    if info is not None and info["structure"] is not None and info["structure"]["space_group_number"] is not None:
        atoms = info["structure"]
        entries.append(("of the atoms", f"{atoms['space_group_symbol']} ({atoms['space_group_number']}), symprec {atoms['symprec']} Å"))
    noise = "none to be seen" if symmetry.noise < NO_NOISE else f"{symmetry.noise:.2g} of the power"
    extinction = symmetry.extinction_group
    entries += [
        ("space group", f"{group.symbol} ({group.number})"),
        ("probability", f"{symmetry.probability:.4f}"),
        ("crystal system", symmetry.crystal_system),
        ("point group", group.point_group),
        ("Hall symbol", f"{group.hall_symbol} ({group.hall_number})"),
        ("extinction group", f"{extinction}, {extinction_group_symbol(extinction)}"),
        ("grid", f"{' × '.join(map(str, density.grid_shape))} points; {density.volume:.4g} Å³"),
        ("primitive cell", f"{abs(float(np.linalg.det(symmetry.lattice))):.4g} Å³, {len(symmetry.operations)} operations"),
        ("noise", noise),
        ("resolution", f"{symmetry.d_min:.3f} Å"),
        ("symprec", f"{symmetry.symprec} Å"),
    ]
    return "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in entries)


def _checks(info: dict[str, Any] | None) -> str:
    if info is None:
        return ""
    items = [
        f"<li class={'ok' if check['ok'] else 'no'}><b>{'ok' if check['ok'] else 'NO'}</b> {html.escape(check['name'])}: "
        f"{html.escape(check['detail'])}</li>"
        for check in info["checks"]
    ]
    items += [f"<li>{html.escape(remark)}</li>" for remark in info["remarks"]]
    return f"<h2>The file</h2><ul class=checks>{''.join(items)}</ul>"

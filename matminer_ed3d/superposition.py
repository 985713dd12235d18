"""Superposed Gaussians on a periodic grid: values at points, means over voxels, or a Fourier sum; plain arrays, no chemistry.

An atom is a few Gaussians, f(s) = sum_c a_c exp(-b_c s^2), which its displacement widens. Each Gaussian is summed where that is cheapest:

- One that a coarser grid resolves is sampled there, in a box around its atom. The spectra of the coarse grids are added, and one
  inverse transform takes them to the grid asked for (to its voxels, with the transform of a voxel). Nothing is lost: a Gaussian
  belongs to the coarsest grid beyond whose Nyquist frequency it has fallen below `TOLERANCE`.
- A sharper one is added in a box around its atom in real space: its values at points, or its integrals over voxels by Gauss-Legendre
  nodes, normalised to its electrons.

Cost: c1 N log N for N grid points plus c2 for each atom (`benchmarks/atoms_to_density.py`). A box holds some ten thousand points whatever
the grid, since a wide Gaussian goes to a coarse one; a grid so fine that even the sharpest Gaussian covers many points adds the cube of
sigma / spacing to c2. The spectrum of a few like atoms is rather a matrix product, where it is cheaper than boxes; so it costs little
more if every atom has a displacement of its own. Nothing in Python runs once per atom, except to add a box of thousands of points.

Error: values at points within 2e-5 e/Å³ of the direct sum, means over voxels of 0.25 Å within 1e-4 e/Å³ (peaks are 1 to 2000 e/Å³).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import lgamma
from typing import Literal

import numpy as np
import scipy.fft
from jaxtyping import Complex, Float, Int

from matminer_ed3d import grids

__all__ = ["Method", "superpose"]

Method = Literal["mean", "point", "band_limited"]

TOLERANCE = {"point": 1e-6, "mean": 1e-5}  # e/Å³; what is left of a Gaussian where it is cut, in real and in reciprocal space
OVERSAMPLING = 1.5  # of the finest grid for voxel means, before it is folded back; at most 2
NARROWEST = 0.02  # sigma in voxels; an atom that stands still is widened to this, so that a voxel can hold it
LARGEST_LOG = 600.0  # exponents below this do not overflow, and what their product loses is below exp(-100)
AT_ONCE = 30_000  # values held at once in boxes: they stay in a core's cache
SLAB = 60_000  # values of a slab in the last transform, for the same reason
NODE_CLASS = 4  # Gaussians of like numbers of nodes are added together
WHOLE_BOX = 13  # voxels; a longer box for voxel integrals is cut into slabs
NODE_ERRORS = [3 * lgamma(n + 1) - np.log(2 * n + 1) - 2 * lgamma(2 * n + 1) - n * np.log(2) for n in range(1, 24)]  # see `_nodes_needed`
SLABS = 6  # that a box is cut into along x, each with its own range along y and z, since an ellipsoid fills little of its box
LIKE = 4.0  # ratio of volumes of boxes that are still added together
AT_ONCE_VOXELS = 400_000  # the same for nodes of integrals over voxels, where fewer calls count for more
COARSEST = 6  # points along an edge; below this, a coarser grid saves nothing
# Nanoseconds on one core, which decide between two exact ways: a point of a box, and of a transform with what it needs; a reflection of
# an atom, and of a kind of atoms.
BOX_COST, TRANSFORM_COST, ATOM_COST, KIND_COST = 4.5, 10.0, 0.4, 10.0
LARGE_BOX = 4_000  # points; a box larger than this is added by slices, a smaller one by its indices


def _half_spectrum_axes(grid_shape: grids.GridShape) -> list[np.ndarray]:
    nx, ny, nz = grid_shape
    return [np.fft.fftfreq(nx, 1 / nx).round(), np.fft.fftfreq(ny, 1 / ny).round(), np.arange(nz // 2 + 1.0)]


# Boxes around atoms


def _classes(volumes: Float[np.ndarray, " n"], others: Int[np.ndarray, " n"] | int = 0) -> Iterator[np.ndarray]:
    """Index arrays of boxes of like volume, within a factor of `LIKE` of the largest of their class, and of equal `others`."""
    which = np.floor(np.log(volumes.max() / volumes) / np.log(LIKE)) + 1000.0 * others
    for one in np.unique(which):
        yield np.flatnonzero(which == one)


def _pair_exponents(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, precision: Float[np.ndarray, "n 3 3"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Split -r^T precision r / 2 into parts of (x, y), of (x, z) and of (y, z); the last is None where y and z do not mix.

    `x`, `y`, `z` are (n, points); each square is shared by the two parts that know it, so that none grows large.
    """
    p = precision[:, :, :, None, None]
    x_column, y_column, y_row, z_row = x[:, :, None], y[:, :, None], y[:, None, :], z[:, None, :]
    if (np.abs(precision[:, 1, 2]) <= 1e-12 * np.sqrt(precision[:, 1, 1] * precision[:, 2, 2])).all():
        xy = x_column * (-0.25 * p[:, 0, 0] * x_column - p[:, 0, 1] * y_row) - 0.5 * p[:, 1, 1] * y_row**2
        xz = x_column * (-0.25 * p[:, 0, 0] * x_column - p[:, 0, 2] * z_row) - 0.5 * p[:, 2, 2] * z_row**2
        return xy, xz, None
    xy = x_column * (-0.25 * p[:, 0, 0] * x_column - p[:, 0, 1] * y_row) - 0.25 * p[:, 1, 1] * y_row**2
    xz = x_column * (-0.25 * p[:, 0, 0] * x_column - p[:, 0, 2] * z_row) - 0.25 * p[:, 2, 2] * z_row**2
    yz = y_column * (-0.25 * p[:, 1, 1] * y_column - p[:, 1, 2] * z_row) - 0.25 * p[:, 2, 2] * z_row**2
    return xy, xz, yz


def _product_of_pairs(
    log_xy: np.ndarray, log_xz: np.ndarray, log_yz: np.ndarray | None, factors: np.ndarray
) -> Float[np.ndarray, "n wx wy wz"]:
    """`factors` times the exponential of a sum of `_pair_exponents`: a product, unless a very skewed cell would let a factor overflow."""
    if log_xy.max() + log_xz.max() + (0.0 if log_yz is None else log_yz.max()) > LARGEST_LOG:
        total = log_xy[..., None] + log_xz[:, :, None]
        return np.exp(total if log_yz is None else total + log_yz[:, None]) * factors[:, None, None, None]
    product = (np.exp(log_xy) * factors[:, None, None])[..., None] * np.exp(log_xz)[:, :, None]
    if log_yz is not None:
        product *= np.exp(log_yz)[:, None]
    return product


def _add_boxes(out: Float[np.ndarray, "nx ny nz"], corners: Int[np.ndarray, "n 3"], boxes: Float[np.ndarray, "n wx wy wz"]) -> None:
    """Add boxes to a periodic grid, each from its corner on."""
    shape, widths = np.array(out.shape), np.array(boxes.shape[1:])
    corners = corners % shape
    if boxes[0].size >= LARGE_BOX and (widths <= shape).all():
        for corner, box in zip(corners.tolist(), boxes, strict=True):
            pieces = [
                [(slice(c, c + w), slice(0, w))] if c + w <= n else [(slice(c, n), slice(0, n - c)), (slice(0, c + w - n), slice(n - c, w))]
                for c, w, n in zip(corner, widths.tolist(), out.shape, strict=True)
            ]
            for x, from_x in pieces[0]:
                for y, from_y in pieces[1]:
                    for z, from_z in pieces[2]:
                        out[x, y, z] += box[from_x, from_y, from_z]
        return
    ix, iy, iz = ((corners[:, i, None] + np.arange(widths[i])) % shape[i] for i in range(3))
    rows = (ix[:, :, None] * shape[1] + iy[:, None, :]) * shape[2]
    np.add.at(out.reshape(-1), (rows[..., None] + iz[:, None, None, :]).ravel(), boxes.ravel())


def _section(
    low: np.ndarray, high: np.ndarray, reach: Float[np.ndarray, "n 2"], correlation: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Range along y of an ellipse of half widths `reach` and a correlation of x and y, between `low` and `high` on x."""
    low, high = (np.maximum(np.minimum(edge / reach[:, 0], 1.0), -1.0) for edge in (low, high))
    narrow = np.sqrt(1 - correlation**2)
    top, bottom = (np.minimum(np.maximum(sign * correlation, low), high) for sign in (1, -1))
    return reach[:, 1] * (correlation * bottom - narrow * np.sqrt(1 - bottom**2)), reach[:, 1] * (
        correlation * top + narrow * np.sqrt(1 - top**2)
    )


def _add_points(
    out: Float[np.ndarray, "nx ny nz"],
    centres: Float[np.ndarray, "n 3"],
    covariance: Float[np.ndarray, "n 3 3"],
    exponents: Float[np.ndarray, " n"],
    peaks: Float[np.ndarray, " n"],
) -> None:
    """Add the values of Gaussians at grid points, to where they have fallen by exp(-exponent); all in grid steps."""
    precision = np.linalg.inv(covariance)
    sigma = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    reach = np.sqrt(2 * exponents)[:, None] * sigma
    correlation = covariance[:, 0, 1:] / (sigma[:, :1] * sigma[:, 1:])
    for some in _classes((2 * reach + 1).prod(axis=1)):
        widths = np.floor(2 * reach[some].max(axis=0)) + 1
        thickness = int(np.ceil(widths[0] / SLABS))
        n_together = max(1, int(AT_ONCE * SLABS / widths.prod()))
        for few in np.array_split(some, -(-len(some) // n_together)):
            first = np.ceil(centres[few, 0] - reach[few, 0])
            for start in range(0, int(widths[0]), thickness):
                low = first + start - centres[few, 0]
                x, corners, rows = low[:, None] + np.arange(thickness), [first + start], []
                for i in (1, 2):
                    bounds = _section(low, low + (thickness - 1), reach[few][:, [0, i]], correlation[few, i - 1])
                    corner = np.ceil(bounds[0] + centres[few, i])
                    width = int(max(1, (np.floor(bounds[1] + centres[few, i]) - corner).max() + 1))
                    rows.append((corner - centres[few, i])[:, None] + np.arange(width))
                    corners.append(corner)
                boxes = _product_of_pairs(*_pair_exponents(x, rows[0], rows[1], precision[few]), peaks[few])
                _add_boxes(out, np.column_stack(corners).astype(int), boxes)


@cache
def _voxel_nodes(n_nodes: int) -> tuple[Float[np.ndarray, " n_nodes"], Float[np.ndarray, " n_nodes"]]:
    """Gauss-Legendre nodes in (0, 1), and their weights, which sum to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
    return 0.5 * (nodes + 1), 0.5 * weights


def _nodes_needed(spans: Float[np.ndarray, "n 3"], exponents: Float[np.ndarray, " n"]) -> Int[np.ndarray, "n 3"]:
    """Gauss-Legendre nodes for `spans` in standard deviations, with a relative error of exp(-exponent).

    The rule's error term, with the largest of the derivatives of the Gaussian, L^2n n!^3 / ((2n + 1) (2n)!^2 2^n), is kept for each n.
    """
    needed = np.full(spans.shape, len(NODE_ERRORS) + 1)
    for n in range(len(NODE_ERRORS), 1, -1):
        needed[2 * n * np.log(np.maximum(spans, 1e-3)) + NODE_ERRORS[n - 1] <= -exponents[:, None]] = n
    return needed


def _voxel_integrals(
    nodes: list[np.ndarray], node_weights: list[np.ndarray], precision: Float[np.ndarray, "n 3 3"]
) -> Float[np.ndarray, "n wx wy wz"]:
    """Integrate exp(-r^T precision r / 2) over the voxels of a box, for each of n Gaussians.

    `nodes` and `node_weights` of each axis are (n, voxels, nodes). The exponent is a sum over pairs of axes, so the sums over nodes along y
    and z are matrix products; where y and z do not mix, as in most conventional cells, they are done before x.
    """
    (x, y, z), (weights_x, weights_y, weights_z) = nodes, node_weights
    n, wx, nx = x.shape
    (wy, ny), (wz, nz) = y.shape[1:], z.shape[1:]
    log_xy, log_xz, log_yz = _pair_exponents(x.reshape(n, -1), y.reshape(n, -1), z.reshape(n, -1), precision)
    skewed = log_xy.max() + log_xz.max() + (0.0 if log_yz is None else log_yz.max()) > LARGEST_LOG
    weights_x, weights_y, weights_z = (w.reshape(n, -1) for w in (weights_x, weights_y, weights_z))
    if skewed:
        log_yz = np.zeros((n, wy * ny, wz * nz)) if log_yz is None else log_yz
        xyz = np.zeros((n, wx * nx, wy, wz * nz))
        for node in range(ny):
            part = slice(node, None, ny)
            xyz += np.exp(log_xy[:, :, part, None] + log_xz[:, :, None, :] + log_yz[:, None, part, :]) * weights_y[:, None, part, None]
        xyz *= weights_x[:, :, None, None] * weights_z[:, None, None, :]
        return xyz.reshape(n, wx, nx, wy, wz, nz).sum(axis=(2, 5))
    xy = np.exp(log_xy) * (weights_x[:, :, None] * weights_y[:, None, :])
    xz = np.exp(log_xz) * weights_z[:, None, :]
    if log_yz is None:
        xy = xy.reshape(n, wx, nx, wy, ny).sum(axis=4)
        xz = xz.reshape(n, wx, nx, wz, nz).sum(axis=4)
        return xy.transpose(0, 1, 3, 2) @ xz
    xy = xy.reshape(n, wx * nx, wy, ny).transpose(0, 2, 1, 3)
    xyz = xy @ np.exp(log_yz).reshape(n, wy, ny, wz * nz)
    xyz = np.einsum("nyxaz,nxaz->nyxz", xyz.reshape(n, wy, wx, nx, wz * nz), xz.reshape(n, wx, nx, wz * nz))
    return xyz.reshape(n, wy, wx, wz, nz).sum(axis=4).transpose(0, 2, 1, 3)


def _add_voxel_integrals(
    out: Float[np.ndarray, "nx ny nz"],
    centres: Float[np.ndarray, "n 3"],
    covariance: Float[np.ndarray, "n 3 3"],
    exponents: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
) -> None:
    """Add the integrals of Gaussians over voxels, each normalised to its weight; all in grid steps."""
    precision = np.linalg.inv(covariance)
    sigma = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    reach = np.sqrt(2 * exponents)[:, None] * sigma
    correlation = covariance[:, 0, 1:] / (sigma[:, :1] * sigma[:, 1:])
    n_nodes = _nodes_needed(np.minimum(1.0, 2 * reach) * np.sqrt(np.diagonal(precision, axis1=1, axis2=2)), exponents)
    for some in _classes((2 * reach + 1).prod(axis=1), n_nodes.max(axis=1) // NODE_CLASS):
        rules = [_voxel_nodes(int(n)) for n in n_nodes[some].max(axis=0)]
        widths = np.ceil(2 * reach[some].max(axis=0)) + 1
        thickness = int(widths[0] if widths[0] <= WHOLE_BOX else np.ceil(widths[0] / SLABS))
        values = thickness * len(rules[0][0]) * widths[1] * widths[2] * len(rules[2][0])
        n_together = max(1, int(AT_ONCE_VOXELS / values))
        for few in np.array_split(some, -(-len(some) // n_together)):
            centre, first = centres[few], np.round(centres[few, 0] - reach[few, 0])
            boxes, places = [], []
            for start in range(0, int(widths[0]), thickness):
                x_low = first + start - 0.5 - centre[:, 0]
                bounds = [(-reach[few, 0], reach[few, 0])]
                if thickness < widths[0]:
                    bounds += [_section(x_low, x_low + thickness, reach[few][:, [0, i]], correlation[few, i - 1]) for i in (1, 2)]
                else:
                    bounds += [(-reach[few, i], reach[few, i]) for i in (1, 2)]
                nodes, node_weights, corner = [], [], []
                for i, ((low, high), (points, shares)) in enumerate(zip(bounds, rules, strict=True)):
                    corner.append(np.round(low + centre[:, i]) if i else first + start)
                    width = int((np.round(high + centre[:, i]) - corner[i]).max() + 1) if i else thickness
                    edges = (corner[i] - 0.5 - centre[:, i])[:, None] + np.arange(width + 1)
                    edges = np.maximum(np.minimum(edges, high[:, None]), low[:, None])  # nodes lie only where a voxel holds something
                    steps = (edges[:, 1:] - edges[:, :-1])[..., None]
                    nodes.append(edges[:, :-1, None] + steps * points)
                    node_weights.append(steps * shares)
                boxes.append(_voxel_integrals(nodes, node_weights, precision[few]))
                places.append(np.column_stack(corner).astype(int))
            totals = sum(box.reshape(len(few), -1).sum(axis=1) for box in boxes)
            for place, box in zip(places, boxes, strict=True):
                _add_boxes(out, place, box * (weights[few] / totals)[:, None, None, None])


# Coarse grids and their spectra


def _coarse_shapes(grid_shape: grids.GridShape, factor: float) -> list[grids.GridShape]:
    """Shapes of ever coarser grids from `factor` times the steps of `grid_shape` on, each sqrt(2) times coarser than the one before."""
    shapes: list[grids.GridShape] = []
    while max(grid_shape) / factor >= COARSEST or not shapes:
        lengths = (scipy.fft.next_fast_len(int(np.ceil(n / factor)), real=True) for n in grid_shape)
        nx, ny, nz = (min(m, n if factor > 1 else 2 * n) for m, n in zip(lengths, grid_shape, strict=True))
        shapes.append((nx, ny, nz))
        factor *= np.sqrt(2)
    return shapes


def _halves(n_from: int, n_to: int, folds: bool = False) -> list[tuple[slice, slice]]:
    """Where the frequencies of an axis of `n_from` points (without the Nyquist frequency) lie on that axis and on one of `n_to` points.

    Where the second axis has fewer, frequencies beyond are left out, or, if it `folds`, go to the places that they alias to.
    """
    n_positive = ((n_from if folds else min(n_from, n_to)) - 1) // 2
    parts = [(slice(0, n_positive + 1), slice(0, n_positive + 1))]
    return [*parts, (slice(n_from - n_positive, n_from), slice(n_to - n_positive, n_to))] if n_positive else parts


def _add_spectrum(out: Complex[np.ndarray, "mx my mz"], shape: grids.GridShape, coarse: np.ndarray, coarse_shape: grids.GridShape) -> None:
    """Add the half spectrum of a coarser grid to that of a finer one."""
    n_z = (min(coarse_shape[2], shape[2]) - 1) // 2 + 1
    for from_x, x in _halves(coarse_shape[0], shape[0]):
        for from_y, y in _halves(coarse_shape[1], shape[1]):
            out[x, y, :n_z] += coarse[from_x, from_y, :n_z]


def _to_grid(spectrum: np.ndarray, shape: grids.GridShape, grid_shape: grids.GridShape) -> Float[np.ndarray, "nx ny nz"]:
    """Values on a grid at least as fine as that of the half spectrum; it never transforms a line of zeros."""
    planes = np.zeros((grid_shape[0], *spectrum.shape[1:]), dtype=complex)
    for from_x, x in _halves(shape[0], grid_shape[0]):
        planes[x] = spectrum[from_x]
    planes = scipy.fft.ifft(planes, axis=0, norm="forward", overwrite_x=True)
    n_z = (shape[2] - 1) // 2 + 1
    out = np.empty(grid_shape)
    n_slab = max(1, SLAB // (grid_shape[1] * grid_shape[2]))
    for start in range(0, grid_shape[0], n_slab):
        part = planes[start : start + n_slab]
        rows = np.zeros((len(part), grid_shape[1], n_z), dtype=complex)
        for from_y, y in _halves(shape[1], grid_shape[1]):
            rows[:, y] = part[:, from_y, :n_z]
        rows = scipy.fft.ifft(rows, axis=1, norm="forward", overwrite_x=True)
        out[start : start + n_slab] = scipy.fft.irfft(rows, n=grid_shape[2], axis=2, norm="forward")
    return out


def _to_voxels(
    spectrum: Complex[np.ndarray, "mx my mz"], shape: grids.GridShape, grid_shape: grids.GridShape
) -> Float[np.ndarray, "nx ny nz"]:
    """Means over the voxels of a grid, from a half spectrum of at most twice its points along each axis; what is beyond folds back."""
    sinc_x, sinc_y = (np.sinc(np.fft.fftfreq(m, n / m)) for m, n in zip(shape[:2], grid_shape[:2], strict=True))
    n_z = (shape[2] - 1) // 2 + 1
    planes = np.zeros((*grid_shape[:2], n_z), dtype=complex)
    for from_x, x in _halves(shape[0], grid_shape[0], folds=True):
        for from_y, y in _halves(shape[1], grid_shape[1], folds=True):
            planes[x, y] += spectrum[from_x, from_y, :n_z] * np.outer(sinc_x[from_x], sinc_y[from_y])[:, :, None]
    planes *= np.sinc(np.arange(n_z) / grid_shape[2])
    planes = scipy.fft.ifft2(planes, axes=(0, 1), norm="forward", overwrite_x=True)
    # Along z the transform of a real function is Hermitian: frequency h beyond the grid's folds to n - h, conjugate.
    n_half = grid_shape[2] // 2 + 1
    beyond = np.arange(grid_shape[2] - n_half + 1, n_z)
    folded = planes[:, :, beyond].conj()
    rows = planes[:, :, :n_half].copy()
    rows[:, :, grid_shape[2] - beyond] += folded
    return scipy.fft.irfft(rows, n=grid_shape[2], axis=2, norm="forward")


# Reflections, one by one


def _geometric_sum(axes: list[np.ndarray], frac_coords: np.ndarray, weights: np.ndarray) -> Complex[np.ndarray, "nx ny nz"]:
    """Sum weights_j exp(-2 pi i h.x_j) for every h of three axes, as one matrix product."""
    ex, ey, ez = (np.exp(-2j * np.pi * np.outer(h, frac_coords[:, i])) for i, h in enumerate(axes))
    planes = (ex[:, None, :] * (ey * weights)[None, :, :]).reshape(-1, len(weights))
    return (planes @ ez.T).reshape(len(axes[0]), len(axes[1]), len(axes[2]))


def _kinds(a: np.ndarray, b: np.ndarray, u_frac: np.ndarray) -> Int[np.ndarray, " n_atoms"]:
    """Number the atoms that are alike in scattering factor and displacement: they share their Gaussians."""
    keys = np.column_stack([a, b, (u_frac.reshape(-1, 9) * 1e12).round()])
    return np.unique(keys, axis=0, return_inverse=True)[1].ravel()


def _structure_factors(
    shape: grids.GridShape,
    frac_coords: Float[np.ndarray, "n 3"],
    covariance: Float[np.ndarray, "n 3 3"],
    weights: Float[np.ndarray, " n"],
    factors: Float[np.ndarray, " n"],
    atoms: Int[np.ndarray, " n"],
    kinds: Int[np.ndarray, " n"],
) -> Complex[np.ndarray, "nx ny nz"]:
    """Half spectrum of Gaussians of `factors` times `weights` electrons; those of a kind differ in place and factor only."""
    axes = _half_spectrum_axes(shape)
    spectrum = np.zeros([len(h) for h in axes], dtype=complex)
    x, y, z = (h[None] for h in axes)
    for kind in np.unique(kinds):
        own = np.flatnonzero(kinds == kind)
        of_first = own[atoms[own] == atoms[own[0]]]
        shape_factor = np.zeros(spectrum.shape)
        for i in of_first:
            pairs = _pair_exponents(x, y, z, 4 * np.pi**2 * covariance[i : i + 1])
            shape_factor += _product_of_pairs(*pairs, weights[i : i + 1])[0]
        _, first_of_atom = np.unique(atoms[own], return_index=True)
        spectrum += shape_factor * _geometric_sum(axes, frac_coords[own[first_of_atom]], factors[own[first_of_atom]])
    return spectrum


# All together


def _widened(covariance: Float[np.ndarray, "n 3 3"], grid_shape: np.ndarray) -> Float[np.ndarray, "n 3 3"]:
    """Covariances in fractional coordinates, none narrower than `NARROWEST` voxels."""
    scaled = covariance * np.outer(grid_shape, grid_shape)
    # The least eigenvalue is at least 4 det / trace^2; where that is enough, it need not be known.
    doubtful = 4 * np.linalg.det(scaled) <= NARROWEST**2 * np.trace(scaled, axis1=1, axis2=2) ** 2
    if doubtful.any():
        missing = np.maximum(0.0, NARROWEST**2 - np.linalg.eigvalsh(scaled[doubtful])[:, 0])
        covariance = covariance.copy()
        covariance[doubtful] += missing[:, None, None] * np.diag(1.0 / grid_shape**2)
    return covariance


def _q_squared(grid_shape: grids.GridShape, metric_inverse: np.ndarray) -> Float[np.ndarray, "nx ny nz"]:
    """h^T metric_inverse h, 1/d² in Å⁻², of every reflection of the half spectrum."""
    x, y, z = (h.reshape([-1 if i == axis else 1 for i in range(3)]) for axis, h in enumerate(_half_spectrum_axes(grid_shape)))
    g = metric_inverse
    return g[0, 0] * x * x + 2 * g[0, 1] * x * y + g[1, 1] * y * y + (2 * g[0, 2] * x + 2 * g[1, 2] * y) * z + g[2, 2] * z * z


def superpose(
    lattice: Float[np.ndarray, "3 3"],
    frac_coords: Float[np.ndarray, "n_atoms 3"],
    occupancies: Float[np.ndarray, " n_atoms"],
    a: Float[np.ndarray, "n_atoms n_gaussians"],
    b: Float[np.ndarray, "n_atoms n_gaussians"],
    u_frac: Float[np.ndarray, "n_atoms 3 3"],
    grid_shape: grids.GridShape,
    method: Method = "mean",
    d_min: float | None = None,
) -> Float[np.ndarray, "nx ny nz"]:
    """Superpose atoms that are sums of Gaussians, with all their periodic images, on a grid.

    Parameters
    ----------
    lattice : (3, 3) float
        Rows in Å.
    frac_coords : (n_atoms, 3) float
        Fractional coordinates.
    occupancies : (n_atoms,) float
        Factor of each atom.
    a, b : (n_atoms, n_gaussians) float
        Scattering factor, sum of ``a exp(-b s^2)`` with s = sin(theta) / lambda; electrons and Å². A constant has ``b = 0``.
    u_frac : (n_atoms, 3, 3) float
        Mean-square displacement in fractional coordinates.
    grid_shape : (int, int, int)
        Points along a, b, c.
    method : {"mean", "point", "band_limited"}
        Mean over the voxel around each point, value at the point, or the Fourier sum of all reflections to `d_min`.
    d_min : float, optional
        Resolution in Å, for ``band_limited`` only.

    Returns
    -------
    (nx, ny, nz) float
        e/Å³. ``mean`` and ``band_limited`` sum to ``(occupancies * a).sum()`` electrons; ``point`` does not where the grid is coarser than
        the atoms (up to 15 % off at 0.25 Å).
    """
    shape = np.array(grid_shape)
    volume = abs(np.linalg.det(lattice))
    metric_inverse = np.linalg.inv(lattice @ lattice.T)
    atom, component = np.nonzero(a * occupancies[:, None])
    kinds = _kinds(a, b, u_frac)[atom]
    centres, weights, factors = frac_coords[atom], a[atom, component], occupancies[atom]
    covariance = (b[atom, component] / (8 * np.pi**2))[:, None, None] * metric_inverse + u_frac[atom]
    if method == "band_limited":
        spectrum = _structure_factors(grid_shape, centres, covariance, weights / volume, factors, atom, kinds)
        if d_min is not None:
            spectrum[_q_squared(grid_shape, metric_inverse) > d_min**-2 * (1 + 1e-9)] = 0
        return scipy.fft.irfftn(spectrum, s=grid_shape, norm="forward")

    covariance = _widened(covariance, shape)
    peaks = weights / (volume * np.sqrt(np.linalg.det(2 * np.pi * covariance)))
    # A Gaussian is cut where it has fallen by exp(-exponent); occupancies are left out, so that they stay mere factors.
    exponents = np.maximum(4.0, np.log(np.abs(peaks) / TOLERANCE[method]))
    # exp(-2 pi^2 h U h) at the faces |h_i| = n_i / 2 of a spectrum; a share of erfc(sqrt(exponent)) lies beyond.
    beyond = exponents - 0.5 * np.log(np.pi * exponents)
    points_needed = np.sqrt(2 * beyond[:, None] * np.diagonal(np.linalg.inv(covariance), axis1=1, axis2=2)) / np.pi

    # On the grid itself, no value at a point needs a transform.
    shapes = _coarse_shapes(grid_shape, 1 / OVERSAMPLING) if method == "mean" else _coarse_shapes(grid_shape, 2.0)
    level = np.full(len(atom), -1)
    for i, coarse in enumerate(shapes):
        level[(points_needed <= np.array(coarse)).all(axis=1)] = i
    rho = np.zeros(0)
    smooth = level >= 0
    if smooth.any():
        finest = shapes[level[smooth].min()]
        spectrum = np.zeros(0, dtype=complex)
        for i in np.unique(level[smooth]):
            some, n = np.flatnonzero(level == i), np.array(shapes[i])
            n_kinds, n_atoms = len(np.unique(kinds[some])), len(np.unique(atom[some]))
            reach = np.sqrt(2 * exponents[some, None] * np.diagonal(covariance[some], axis1=1, axis2=2)) * n
            in_boxes = BOX_COST * (2 * reach + 1).prod(axis=1).sum() + TRANSFORM_COST * n.prod()
            in_spectrum = 0.5 * n.prod() * (ATOM_COST * n_atoms + KIND_COST * n_kinds)
            if in_spectrum < in_boxes:
                part = _structure_factors(
                    shapes[i], centres[some], covariance[some], weights[some] / volume, factors[some], atom[some], kinds[some]
                )
            else:
                values = np.zeros(shapes[i])
                _add_points(values, centres[some] * n, covariance[some] * np.outer(n, n), exponents[some], (factors * peaks)[some])
                part = scipy.fft.rfftn(values, norm="forward")
            if shapes[i] == finest:
                spectrum = part
            else:
                _add_spectrum(spectrum, finest, part, shapes[i])
        spectrum[0, 0, 0] = (weights * factors)[smooth].sum() / volume  # what the cuts lose is spread evenly
        rho = (_to_voxels if method == "mean" else _to_grid)(spectrum, finest, grid_shape)
    else:
        rho = np.zeros(grid_shape)
    sharp = np.flatnonzero(~smooth)
    if len(sharp):
        where = centres[sharp] * shape, covariance[sharp] * np.outer(shape, shape), exponents[sharp]
        if method == "mean":
            _add_voxel_integrals(rho, *where, (weights * factors)[sharp] * shape.prod() / volume)
        else:
            _add_points(rho, *where, (factors * peaks)[sharp])
    return rho

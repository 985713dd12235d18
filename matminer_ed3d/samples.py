"""From anything that has a density to the sample a network reads, by one description that features, estimators and weights share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from matminer_ed3d import grids
from matminer_ed3d.density import Density
from matminer_ed3d.invariant_sampling import sample_reduced_voxels
from matminer_ed3d.reduction import reduce_cell
from matminer_ed3d.representations import PointCloud, Sample, SparseTensor
from matminer_ed3d.sampling import Reduction, Rng, check_options, sample_points, sample_voxels
from matminer_ed3d.sources import as_density

__all__ = ["SampleOptions", "make_sample"]

GRID_SPACING = 0.25  # Å, of a structure's density where the sample does not set its grid; finer where the voxels are
DRAWN_FROM = 2  # points along each edge of a voxel that draws one of them, where the density is made from a structure
AVERAGED = 3  # the same where a Cartesian voxel averages them


@dataclass(frozen=True)
class SampleOptions:
    """How a density becomes a sample.

    Parameters
    ----------
    kind : {"points", "voxels"}
        :class:`PointCloud` or :class:`SparseTensor`.
    channels, voxel_size, voxel_basis, reduction, threshold, max_points, multiple_of
        As in :func:`sample_points` and :func:`sample_voxels`; `voxel_basis` and `multiple_of` are for voxels only.
    cell : {"as_given", "reduced"}
        The cell of the source, or the density's own primitive Niggli cell in its fixed setting and origin
        (:mod:`matminer_ed3d.reduction`), so that the sample is the same from any cell of the crystal.
    d_min : float or None
        Resolution in Å; None samples the density itself. A number asks for
        :func:`matminer_ed3d.invariant_sampling.sample_reduced_voxels`, with ``kind="voxels"``, ``cell="reduced"``,
        ``voxel_basis="lattice"``, ``reduction="mean"`` and ``max_points=None`` only.
    max_voxels, standardize
        As there.
    """

    kind: Literal["points", "voxels"] = "points"
    channels: tuple[str, ...] = ("total",)
    voxel_size: float = 0.25
    voxel_basis: Literal["lattice", "cartesian"] = "lattice"
    reduction: Reduction = "random"
    threshold: float = 0.0
    max_points: int | Literal["paper"] | None = None
    multiple_of: int = 1
    cell: Literal["as_given", "reduced"] = "as_given"
    d_min: float | None = None
    max_voxels: int | None = None
    standardize: bool = False

    def check(self) -> None:
        """Refuse a combination that has no meaning.

        Raises
        ------
        ValueError
            Says which option, and what to do.
        """
        if self.kind not in ("points", "voxels"):
            raise ValueError(f"`kind` must be 'points' or 'voxels', got {self.kind!r}")
        if self.cell not in ("as_given", "reduced"):
            raise ValueError(f"`cell` must be 'as_given' or 'reduced', got {self.cell!r}")
        check_options(
            voxel_size=self.voxel_size,
            voxel_basis=self.voxel_basis,
            reduction=self.reduction,
            threshold=self.threshold,
            max_points=self.max_points,
            channels=self.channels,
            multiple_of=self.multiple_of,
        )
        if self.max_voxels is not None and self.max_voxels < 1:
            raise ValueError(f"`max_voxels` must be at least 1, got {self.max_voxels}")
        if self.d_min is None:
            if self.max_voxels is not None or self.standardize:
                raise ValueError("`max_voxels` and `standardize` go with a resolution; set `d_min`")
        elif (self.kind, self.cell, self.voxel_basis) != ("voxels", "reduced", "lattice"):
            raise ValueError("`d_min` goes with kind='voxels', cell='reduced' and voxel_basis='lattice'; leave it None otherwise")
        elif self.reduction != "mean" or self.max_points is not None:
            raise ValueError(
                "`d_min` sums Fourier coefficients at the voxels, without `reduction` and `max_points`; "
                f"with it take reduction='mean' and max_points=None, got {self.reduction!r} and {self.max_points!r}, or `max_voxels`"
            )
        elif not self.d_min > 0:
            raise ValueError(f"`d_min` must be a positive resolution in Å, got {self.d_min}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the header of a file of weights."""
        return asdict(self)


def _density(source: Any, options: SampleOptions) -> Density:
    """Density of a source; a structure gives what the sample needs.

    That is all coefficients to `d_min`; the means of the very voxels; or, for voxels that draw one of their grid points or average those
    inside a cube, a grid two or three times as fine as they are.
    """
    if options.d_min is not None:
        return as_density(source, method="band_limited", grid_spacing=0.5 * options.d_min, d_min=options.d_min)
    if (options.reduction, options.voxel_basis, options.cell) == ("mean", "lattice", "as_given"):
        multiple_of = options.multiple_of if options.kind == "voxels" else 1
        return as_density(source, grid_shape=partial(grids.coarse_grid_shape, voxel_size=options.voxel_size, multiple_of=multiple_of))
    if options.reduction == "random":
        return as_density(source, method="point", grid_spacing=options.voxel_size / DRAWN_FROM)
    if options.voxel_basis == "cartesian":
        return as_density(source, grid_spacing=options.voxel_size / AVERAGED)
    return as_density(source, grid_spacing=min(GRID_SPACING, options.voxel_size))


def make_sample(source: Any, options: SampleOptions, rng: Rng = None) -> Sample:
    """Make one sample.

    A structure's density is made on the grid that the sample needs. With ``reduction="random"`` or ``voxel_basis="cartesian"`` its points
    are a half or a third of `voxel_size` apart, so that there is something to draw from or to average: at 0.25 Å such a sample takes some
    six (random) times as long as the lattice-aligned means, or more (Cartesian means).

    Parameters
    ----------
    source : Structure, Chgcar, Density, path or ready sample
        A sample passes through if it is of the kind and the channels that `options` name.
    options : SampleOptions
        What to make.
    rng : numpy Generator, int or None
        For random points.

    Returns
    -------
    PointCloud or SparseTensor

    Raises
    ------
    ValueError
        If the options contradict each other, or a ready sample is not what they ask for.
    """
    options.check()
    if isinstance(source, PointCloud | SparseTensor):
        wanted = PointCloud if options.kind == "points" else SparseTensor
        if not isinstance(source, wanted):
            raise ValueError(f"expected a {wanted.__name__}, got a {type(source).__name__}; make it with the matching featurizer")
        if source.channels != tuple(options.channels):
            raise ValueError(f"expected a sample with the channels {tuple(options.channels)}, got {source.channels}")
        return source
    density = _density(source, options)
    if options.d_min is not None:
        return sample_reduced_voxels(
            density,
            d_min=options.d_min,
            voxel_size=options.voxel_size,
            max_voxels=options.max_voxels,
            multiple_of=options.multiple_of,
            threshold=options.threshold,
            standardize=options.standardize,
            channels=tuple(options.channels),
        )
    if options.cell == "reduced":
        density = reduce_cell(density)
    shared: dict[str, Any] = {
        "voxel_size": options.voxel_size,
        "reduction": options.reduction,
        "threshold": options.threshold,
        "max_points": options.max_points,
        "channels": tuple(options.channels),
        "rng": rng,
    }
    if options.kind == "points":
        return sample_points(density, **shared)
    return sample_voxels(density, voxel_basis=options.voxel_basis, multiple_of=options.multiple_of, **shared)

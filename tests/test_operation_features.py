"""Operations counted by kind: random crystals of known groups, whose operations are listed in International Tables A."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_crystals import random_crystal

from matminer_ed3d.density import Density
from matminer_ed3d.networks.batching import VoxelBatch, collate
from matminer_ed3d.networks.operation_features import DIFFERENCES, DISPLACEMENTS, N_OPERATION_FEATURES
from matminer_ed3d.networks.operation_kinds import KINDS
from matminer_ed3d.networks.reflections import fixed_origin, low_order_coefficients
from matminer_ed3d.networks.rotations import lattice_rotations, rotation_table
from matminer_ed3d.networks.symmetry_features import LOW_REACH, REACH, symmetry_features
from matminer_ed3d.reduction import lattice_rotations as rotations_of_lattice
from matminer_ed3d.representations import SparseTensor
from matminer_ed3d.samples import SampleOptions, make_sample

OPTIONS = SampleOptions(
    kind="voxels", reduction="mean", cell="reduced", d_min=1.0, voxel_size=0.5, max_voxels=2048, threshold=-100.0, standardize=True
)
N_LOW = ((2 * LOW_REACH + 1) ** 3 - 1) // 2
N_TOLERANCES = 2 * len(DISPLACEMENTS) + len(DIFFERENCES)

# International Tables A, chapter 2.3: the operations of one primitive cell. Enantiomorphs; Pnma; Pccn and Pbcn, which have the same
# axes and the same planes, but not across each other; three tetragonal groups; a trigonal pair whose axes lie differently.
OPERATIONS = {
    2: {"-1": 1},
    4: {"2_1 short": 1},
    76: {"4_1": 2, "2_1 main": 1},
    78: {"4_3": 2, "2_1 main": 1},
    144: {"3_1": 2},
    145: {"3_2": 2},
    169: {"6_1": 2, "3_1": 2, "2_1 main": 1},
    170: {"6_5": 2, "3_2": 2, "2_1 main": 1},
    62: {"2_1 short": 3, "-1": 1, "m short": 1, "a short": 1, "n short": 1, "2_1/m": 1, "2_1/a": 1, "2_1/n": 1},
    56: {"2 short": 1, "2_1 short": 2, "-1": 1, "a short": 2, "n short": 1, "2/n": 1, "2_1/a": 2},
    60: {"2 short": 1, "2_1 short": 2, "-1": 1, "a short": 2, "n short": 1, "2/a": 1, "2_1/a": 1, "2_1/n": 1},
    99: {"4": 2, "2 main": 1, "m short": 2, "m long": 2},
    100: {"4": 2, "2 main": 1, "a short": 2, "m long": 2},
    102: {"4_2": 2, "2 main": 1, "n short": 2, "m long": 2},
    149: {"3": 2, "2 long": 3},
    150: {"3": 2, "2 short": 3},
}


def counts_of(sample: SparseTensor, tolerance: int = 1) -> dict[str, float]:
    batch = collate([sample])
    assert isinstance(batch, VoxelBatch)
    features = symmetry_features(batch)[0, -N_LOW - N_OPERATION_FEATURES : -N_LOW].view(len(KINDS), N_TOLERANCES)
    return {kind: float(row[tolerance]) for kind, row in zip(KINDS, features, strict=True)}


def sample_of(number: int) -> SparseTensor:
    sample = make_sample(random_crystal(number, np.random.default_rng([1, number])), OPTIONS)
    assert isinstance(sample, SparseTensor)
    return sample


@pytest.mark.parametrize("number", OPERATIONS)
def test_operations_are_those_of_the_group(number: int) -> None:
    counts = counts_of(sample_of(number))
    expected = {kind: float(OPERATIONS[number].get(kind, 0)) for kind in KINDS}
    assert counts == pytest.approx(expected, abs=0.05)


def test_noise_takes_the_strict_tolerances_first() -> None:
    sample = sample_of(62)
    noise = 0.05 * np.random.default_rng(0).normal(size=sample.feats.shape).astype(np.float32)
    noisy = SparseTensor(sample.coords, sample.feats + noise, ("total",), sample.voxel_basis, sample.grid_shape)
    strict, loose = counts_of(noisy, 0)["2_1 short"], counts_of(noisy, len(DISPLACEMENTS) - 1)["2_1 short"]
    assert strict < 0.5 < 2 < loose


def test_the_table_holds_every_rotation_of_a_reduced_lattice_and_what_it_is() -> None:
    table = rotation_table()
    identity = torch.eye(3, dtype=torch.long)
    for n in (1, 2, 3, 4, 6):
        matrices = table.matrices[table.order == n]
        assert (torch.linalg.matrix_power(matrices, n) == identity).all()
        assert n == 1 or (matrices != identity).flatten(1).any(1).all()
    # the axis stays where it is, as a lattice vector (row times matrix) and as reflection indices (matrix times column)
    assert ((table.axis[:, None, :] @ table.matrices)[:, 0] == table.axis).all()
    assert ((table.matrices @ table.axis_index[:, :, None])[:, :, 0] == table.axis_index)[table.order > 1].all()
    lattice = 4.0 * np.array([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]])
    _, which, _ = lattice_rotations(torch.tensor(lattice)[None], 1e-3)
    found = {tuple(m.flatten().tolist()) for m in table.matrices[which]}
    expected = {tuple(np.asarray(w).ravel().tolist()) for w in rotations_of_lattice(lattice) if np.linalg.det(w) > 0}
    assert found == expected


def test_the_origin_of_the_input_does_not_matter_once_it_is_fixed() -> None:
    sample = sample_of(19)
    assert sample.grid_shape is not None
    volumes = []
    for shift in ((0, 0, 0), (1, 2, 3)):
        coords = torch.from_numpy((sample.coords + np.array(shift)) % np.array(sample.grid_shape)).long()
        rows = torch.cat([torch.zeros(len(coords), 1, dtype=torch.long), coords], 1)
        volume = low_order_coefficients(torch.from_numpy(sample.feats[:, 0]), rows, torch.tensor([sample.grid_shape]), REACH)
        volumes.append(fixed_origin(volume, 4))
    assert volumes[0].abs().max() > 0.1
    torch.testing.assert_close(volumes[0], volumes[1], atol=1e-5, rtol=0)


def test_density_of_a_file_gives_the_same_counts() -> None:
    crystal = random_crystal(92, np.random.default_rng(5))
    from_structure, density = (
        make_sample(crystal, OPTIONS),
        Density.from_structure(crystal, grid_spacing=0.2, method="band_limited", d_min=1.0),
    )
    from_density = make_sample(density, OPTIONS)
    assert isinstance(from_structure, SparseTensor)
    assert isinstance(from_density, SparseTensor)
    first = counts_of(from_structure)
    assert first["4_1"] == pytest.approx(2, abs=0.05)
    assert first == pytest.approx(counts_of(from_density), abs=0.05)


def batch_of(values: np.ndarray) -> VoxelBatch:
    """A cube of 4 Å, all of its voxels."""
    coords = np.stack(np.unravel_index(np.arange(values.size), values.shape), axis=1).astype(np.int32)
    feats = values.reshape(-1, 1).astype(np.float32)
    basis = 4.0 * np.eye(3) / np.array(values.shape)[:, None]
    batch = collate([SparseTensor(coords, feats, ("total",), basis, values.shape)])
    assert isinstance(batch, VoxelBatch)
    return batch


@pytest.mark.parametrize("direction", [(1, 0, 0), (1, 1, 0), (1, 1, 1)])
def test_a_density_that_varies_along_one_direction_only(direction: tuple[int, int, int]) -> None:
    x = np.stack(np.meshgrid(*3 * (np.arange(20) / 20,), indexing="ij"), axis=-1) @ np.array(direction)
    values = np.exp(-200 * np.sin(np.pi * x) ** 2)
    features = symmetry_features(batch_of((values - values.mean()) / values.std()))
    assert bool(features.isfinite().all())


@pytest.mark.parametrize("shape", [(8, 8, 8), (1, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_a_flat_density_and_cells_of_few_voxels(shape: tuple[int, int, int]) -> None:
    values = np.zeros(shape) if shape == (8, 8, 8) else np.random.default_rng(0).normal(size=shape)
    assert bool(symmetry_features(batch_of(values)).isfinite().all())

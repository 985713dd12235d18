"""A table of structures to numeric features of their densities, and these into a scikit-learn pipeline."""

from __future__ import annotations

import pandas as pd
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from matminer_ed3d import DensityPointCloud, DensityStatistics

# Rock-salt halides: cell edge in Å (Wyckoff, Crystal Structures 1) and bulk modulus in GPa at room temperature, rounded.
HALIDES = {
    ("Na", "Cl"): (5.641, 24),
    ("K", "Cl"): (6.293, 17),
    ("Li", "F"): (4.017, 67),
    ("Na", "F"): (4.620, 46),
    ("K", "Br"): (6.600, 15),
}

table = pd.DataFrame(
    {
        "structure": [
            Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), pair, [[0, 0, 0], [0.5, 0.5, 0.5]]) for pair, (a, _) in HALIDES.items()
        ],
        "bulk_modulus": [modulus for _, modulus in HALIDES.values()],
    }
)

table = DensityStatistics().featurize_dataframe(table, "structure", pbar=False)
print(table.drop(columns="structure").T.head(10).round(3))

# A featurizer is a transformer: the same as one step of a pipeline.
model = make_pipeline(DensityStatistics(), StandardScaler(), Ridge(alpha=1.0)).fit(table["structure"], table["bulk_modulus"])
print("fitted (not a test):", model.predict(table["structure"]).round(0))

# Objects instead of numbers: one point cloud per row, for a network or for processing of your own.
clouds = DensityPointCloud(voxel_size=0.5).featurize_dataframe(table[["structure"]], "structure", pbar=False)
print(clouds.iloc[0, -1].coords.shape, clouds.iloc[0, -1].channels)

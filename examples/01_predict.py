"""From a density file and a structure file to their crystal system, extinction group and space group."""

from __future__ import annotations

from importlib.resources import files

from matminer_ed3d import load_pretrained
from matminer_ed3d.labels import TARGETS, coarsen_proba

EXAMPLES = files("matminer_ed3d") / "data" / "examples"
inputs = [str(EXAMPLES / "Fe_bcc_CHGCAR.gz"), str(EXAMPLES / "TiO2_rutile.cif")]

model = load_pretrained()
proba = model.predict_proba(inputs)  # over space groups; the coarser targets are sums of it

for path, row in zip(inputs, proba, strict=True):
    print(path.rsplit("/", 1)[-1])
    for target in TARGETS:
        target_proba, classes = coarsen_proba(row[None], model.classes_, target)
        best = target_proba[0].argsort()[::-1][:3]
        print(f"  {target:20s}", ", ".join(f"{classes[i]} ({target_proba[0, i]:.3f})" for i in best))

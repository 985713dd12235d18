"""The training loop: seeded batches, AdamW with warm-up, early stopping on a validation part, checkpoints that resume exactly.

Nothing global is touched: every epoch draws from generators made of (seed, epoch), so a resumed run needs no stored generator state,
and torch's own generators are put back when the loop ends.

``options`` says how, ``batches`` which samples meet, ``losses`` what is minimised, ``state`` what a checkpoint holds, ``processes``
how several share the work, and ``loop`` trains.
"""

from matminer_ed3d.training.batches import split_validation
from matminer_ed3d.training.loop import learning_rate_factor, network_outputs, resolve_device, seeded_network, train
from matminer_ed3d.training.losses import LOSSES
from matminer_ed3d.training.options import TrainingOptions

__all__ = [
    "LOSSES",
    "TrainingOptions",
    "learning_rate_factor",
    "network_outputs",
    "resolve_device",
    "seeded_network",
    "split_validation",
    "train",
]

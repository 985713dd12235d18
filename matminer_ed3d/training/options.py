"""What decides a training beside the samples and the network."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

from matminer_ed3d import augmentation

__all__ = ["TrainingOptions"]


@dataclass(frozen=True)
class TrainingOptions:
    """How to train; all that decides the result, beside the samples and the network.

    Parameters
    ----------
    seed : int
        Decides the split, the order of samples, the augmentations and the dropout.
    max_epochs : int
        Passes over the training part.
    batch_size : int
        Samples in a batch, at most; without `max_points_per_batch`, batches of an epoch are of equal size, to one.
    max_points_per_batch : int or None
        Fill each batch with samples up to this many points or voxels, so that time and memory of a step are bounded where samples differ
        in size. A larger sample is a batch of its own.
    class_balance : float
        In [0, 1], for classes only: an epoch draws a sample of class c with a probability proportional to n_c ** (1 - `class_balance`),
        n_c being the class's samples. 0 takes every sample once; 1 shows all classes equally often, a rare one by repeating its samples
        (copies of a sample differ by one at most). Unlike weights it changes what a batch holds, not how much a sample counts.
    learning_rate, weight_decay : float
        Of AdamW. Only weights of two axes and more decay: biases, and the scales and shifts of normalisations, do not.
    label_smoothing : float
        In [0, 1), for classes only: the target of a sample is 1 - this for its class, plus this spread evenly over all of them. Of the
        training loss; the validation loss stays the plain cross-entropy.
    lr_schedule : {"cosine", "constant"}
        After the warm-up: half a cosine down to 1 % of `learning_rate`, or no change.
    warmup_fraction : float
        Part of all steps in which the learning rate grows linearly from zero: the second moments of AdamW are noise at first.
    validation_fraction : float
        Part of the samples held out to choose the best epoch, in [0, 0.5]. 0 keeps the last weights.
    early_stopping : int or None
        Stop when the validation loss has not improved for this many epochs; None trains to the end. The weights of the best epoch
        are restored either way.
    augmentations : tuple of str
        Names out of :data:`matminer_ed3d.augmentation.AUGMENTATIONS`, drawn anew for each sample in each epoch.
    noise_level : float
        Largest noise, relative to the rms of the channel about its mean.
    gradient_norm : float
        Gradients longer than this are shortened to it.
    ema_decay : float or None
        Keep an exponential average of the weights and use it for validation and as the result.
    precision : {"float32", "bf16"}
        bf16 runs the forward pass under autocast; weights and loss stay float32.
    device : str
        ``auto`` is ``cuda`` where there is one, else ``cpu``.
    devices : int
        GPUs, or processes on the CPU, that share each batch; more than 1 needs the extra ``distributed`` (Lightning Fabric).

    Raises
    ------
    ValueError
        On a value out of range.
    """

    seed: int = 0
    max_epochs: int = 30
    batch_size: int = 32
    max_points_per_batch: int | None = None
    class_balance: float = 0.0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    label_smoothing: float = 0.0
    lr_schedule: str = "cosine"
    warmup_fraction: float = 0.05
    validation_fraction: float = 0.1
    early_stopping: int | None = 5
    augmentations: tuple[str, ...] = ()
    noise_level: float = 0.05
    gradient_norm: float = 1.0
    ema_decay: float | None = None
    precision: str = "float32"
    device: str = "auto"
    devices: int = 1

    def __post_init__(self) -> None:
        for names, kind, expected in (
            (("max_epochs", "batch_size", "devices"), Integral, "an integer"),
            (("early_stopping", "max_points_per_batch"), Integral, "None or an integer"),
            (("learning_rate", "weight_decay", "warmup_fraction", "validation_fraction"), Real, "a number"),
            (("noise_level", "gradient_norm", "class_balance", "label_smoothing"), Real, "a number"),
            (("ema_decay",), Real, "None or a number"),
        ):
            for name in names:
                value = getattr(self, name)
                is_right = type(value) is not bool and isinstance(value, kind)
                if not is_right and not (value is None and "None" in expected):
                    raise ValueError(f"`{name}` must be {expected}, got {value!r}")
        in_range = {
            "max_epochs": (self.max_epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "max_points_per_batch": (self.max_points_per_batch is None or self.max_points_per_batch >= 1, "None or at least 1"),
            "class_balance": (0 <= self.class_balance <= 1, "in [0, 1]"),
            "learning_rate": (self.learning_rate > 0, "positive"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "in [0, 1)"),
            "lr_schedule": (self.lr_schedule in ("cosine", "constant"), "'cosine' or 'constant'"),
            "warmup_fraction": (0 <= self.warmup_fraction < 1, "in [0, 1)"),
            "validation_fraction": (0 <= self.validation_fraction <= 0.5, "in [0, 0.5]"),
            "early_stopping": (self.early_stopping is None or self.early_stopping >= 1, "None or at least 1 epoch"),
            "noise_level": (self.noise_level >= 0, "at least 0"),
            "gradient_norm": (self.gradient_norm > 0, "positive"),
            "ema_decay": (self.ema_decay is None or 0 < self.ema_decay < 1, "None or in (0, 1)"),
            "precision": (self.precision in ("float32", "bf16"), "'float32' or 'bf16'"),
            "devices": (self.devices >= 1, "at least 1"),
        }
        for name, (valid, expected) in in_range.items():
            if not valid:
                raise ValueError(f"`{name}` must be {expected}, got {getattr(self, name)!r}")
        augmentation.check_names(self.augmentations)

"""The processes that train one network together: the only door to Lightning Fabric.

Each process has the whole network and its share of every batch; ``DistributedDataParallel`` averages the gradients. One process
alone needs nothing of this, and Fabric, whose import takes as long as torch's, is not loaded for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import nn

__all__ = ["Processes", "launch"]


class Processes:
    """One of the processes that train a network, or the only one.

    Parameters
    ----------
    fabric : lightning_fabric.Fabric, optional
        Of the launched process; None is one process alone.
    """

    def __init__(self, fabric: Any = None) -> None:
        self.fabric = fabric
        self.rank: int = 0 if fabric is None else fabric.global_rank
        self.number: int = 1 if fabric is None else fabric.world_size

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network whose gradients are averaged over the processes; its parameters are those of `network`."""
        if self.fabric is None:
            return network
        wrapped: nn.Module = self.fabric.setup_module(network, move_to_device=False)
        return wrapped

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add the tensors of all processes."""
        if self.fabric is None:
            return values
        total: torch.Tensor = self.fabric.all_reduce(values.to(self.fabric.device, copy=True), reduce_op="sum").to(values.device)
        return total

    def rows(self, n_rows: int, compute: Callable[[Int[np.ndarray, " m"]], torch.Tensor]) -> Shaped[torch.Tensor, "n_rows ..."]:
        """Compute the rows of a table together; `compute` gives those of the indices it gets."""
        if n_rows < self.number or self.fabric is None:
            return compute(np.arange(n_rows))
        mine = np.arange(self.rank, n_rows, self.number)
        values = compute(mine)
        table = values.new_zeros(n_rows, *values.shape[1:])
        table[mine] = values
        return self.sum(table)

    @torch.no_grad()
    def take_buffers_of_first(self, network: nn.Module) -> None:
        """Give the first process's buffers (running statistics) to all, as ``DistributedDataParallel`` does before a training step."""
        if self.fabric is not None:
            for buffer in network.buffers():
                buffer.copy_(self.sum(buffer if self.rank == 0 else torch.zeros_like(buffer)))


def launch(run: Callable[..., None], n_processes: int, device: torch.device, *arguments: Any) -> None:
    """Call ``run(processes, device, *arguments)`` in new processes, and wait for all of them.

    Parameters
    ----------
    run : callable
        Importable by name, as the processes are spawned.
    n_processes : int
        One for each GPU, or as many on the CPU.
    device : torch.device
        Its type is that of all.
    arguments
        Picklable. Each process gets its copy, but of CPU tensors, and so of networks, all see the same memory.

    Raises
    ------
    ImportError
        Without Lightning Fabric.
    ValueError
        If there are fewer GPUs.
    torch.multiprocessing.ProcessRaisedException, ProcessExitedException
        If a process fails or is killed; the others are then ended.
    """
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments.lightning import LightningEnvironment
        from lightning_fabric.strategies.ddp import DDPStrategy
    except ImportError as error:
        raise ImportError("`devices` above 1 needs Lightning Fabric: pip install 'matminer_ed3d[distributed]'") from error
    n_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (str(device) != "cuda" or n_gpus < n_processes):
        raise ValueError(f"`devices` must be at most the {n_gpus} GPUs here, and `device` 'cuda', got {n_processes} and {str(device)!r}")
    environment = LightningEnvironment()  # said, not guessed: a cluster's variables start nothing here
    strategy = DDPStrategy(start_method="spawn")
    fabric = Fabric(accelerator=device.type, devices=n_processes, strategy=strategy, plugins=[environment])
    port = os.environ.get("MASTER_PORT")
    try:
        fabric.launch(partial(_run, run, arguments))  # bound, as Fabric looks into arguments and refuses frozen dataclasses
    finally:  # Fabric leaves the port of this launch in the environment
        os.environ.pop("MASTER_PORT", None)
        if port is not None:
            os.environ["MASTER_PORT"] = port


def _run(run: Callable[..., None], arguments: tuple[Any, ...], fabric: Any) -> None:
    run(Processes(fabric), fabric.device, *arguments)
    torch.distributed.destroy_process_group()  # Fabric leaves it to the interpreter's exit, where gloo's threads now and then abort

"""One process or several, through Accelerate: each computes on a share, and all keep the same weights.

``accelerate launch`` or ``torchrun`` starts the processes; with one process nothing here does anything. The
gradients are added up by the loop itself, once per term: a step may run the model several times before it
goes backward, and masks and norms need the two terms' gradients apart.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Processes:
    """This process among those that train together."""

    def __init__(self) -> None:
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        self._state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
        self.count: int = self._state.num_processes
        self.rank: int = self._state.process_index

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    @property
    def device(self) -> torch.device | None:
        """The device of this process among several; None leaves a lone process where its model is."""
        return self._state.device if self.count > 1 else None

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the processes' tensors, all of one shape."""
        if self.count == 1:
            return tensor
        from accelerate.utils import reduce

        return reduce(tensor, reduction="sum")

    def collect(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, all of one shape, in the order of their ranks."""
        if self.count == 1:
            return [tensor]
        from accelerate.utils import gather

        return list(gather(tensor.unsqueeze(0)))

    def wait(self) -> None:
        """Go on when all processes are here."""
        self._state.wait_for_everyone()

"""TorchANI's training for `bench.accuracy`: a line [s, validation RMSE, test MAE] an epoch, errors in kcal/mol."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.peers.torchani_worker import SETTINGS, Training, problem

EPOCHS = 300
LEARNING_RATE = 3e-3
KCAL_PER_MOL = 23.06054783061903


class Run(Training):
    """The loop of `bench.compare` with a schedule, which remembers its networks after each epoch."""

    def __init__(self) -> None:
        """Energies and forces, eager: a script is no faster here, and torch.compile cannot train to forces."""
        super().__init__("eager", cached=False, forces=True)
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, EPOCHS)
        self.saved: list[tuple[float, float, list[Tensor]]] = []
        self.parameters: list[Tensor] = self.optimizer.param_groups[0]["params"]

    def go(self) -> None:
        """Train until the epochs or the time are over."""
        valid = torch.from_numpy(problem()["valid"])
        seconds = 0.0
        while len(self.saved) < EPOCHS and seconds < SETTINGS["limit"]:
            self.epoch()
            self.schedule.step()
            rmse = (self.errors(valid) ** 2).mean().sqrt().item()
            seconds = time.time() - SETTINGS["started"]
            self.saved.append((seconds, rmse, [each.detach().clone() for each in self.parameters]))

    @torch.no_grad()
    def errors(self, index: Tensor) -> Tensor:
        """Of the energies of the structures at `index` (m,), kcal/mol."""
        found: Any = self.predict(self.numbers[index], self.positions[index])
        return KCAL_PER_MOL * (found - self.energies[index])

    @torch.no_grad()
    def test(self) -> None:
        """Print every epoch's line."""
        learned = np.concatenate([problem()["train"], problem()["valid"]])
        index = torch.from_numpy(np.setdiff1d(np.arange(len(self.energies)), learned))
        for seconds, rmse, saved in self.saved:
            for parameter, value in zip(self.parameters, saved, strict=True):
                parameter.copy_(value)
            print([seconds, rmse, self.errors(index).abs().mean().item()], flush=True)


if __name__ == "__main__":
    torch.set_num_threads(SETTINGS["threads"])
    torch.manual_seed(0)
    run = Run()
    run.go()
    run.test()

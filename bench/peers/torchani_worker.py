"""TorchANI's answers: AEVs, training as its documentation writes it, its ASE calculator, batches, its ensembles.

`mode` is eager, script (torch.jit.script) or compile (torch.compile); the harness asks for each and reports the best.

# M structures, n atoms of each, S species, D AEV length
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.peers.moving import moving
from bench.peers.protocol import Answer, Task, median_of_calls, serve, timed
from bench.peers.torchani_model import HARTREE, Problem, check, computer, model

SETTINGS = json.loads(sys.argv[1])
PRECISION = getattr(torch, SETTINGS["dtype"])
DEVICE = torch.device(SETTINGS["device"])
FORCE_WEIGHT = 0.3


@cache
def problem() -> Problem:
    """The arrays of problem.npz."""
    return dict(np.load(SETTINGS["problem"]))


def start() -> Mapping[str, Task]:
    """Threads, and the check that TorchANI computes what we do."""
    torch.set_num_threads(SETTINGS["threads"])
    check(problem())
    return {
        "aevs": aevs,
        "epoch": epoch,
        "one_structure": one_structure,
        "many_structures": many_structures,
        "ensemble": ensemble,
    }


def _finished(work: Callable[[], None]) -> Callable[[], None]:
    """`work`, and the wait for a GPU that is still at it."""

    def whole() -> None:
        work()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return whole


def _in_mode(module: nn.Module, mode: str) -> Any:
    if mode == "eager":
        return module
    return torch.jit.script(module) if mode == "script" else torch.compile(module)


@cache
def _arrays() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Atomic numbers (M,n), positions (M,n,3) Å, energies (M,) eV less self energies, forces (M,n,3) eV/Å."""
    found = problem()
    totals = found["energies"] - found["self_energies"][np.where(found["numbers"] == 6, 0, 1)].sum(axis=1)
    values = (torch.from_numpy(each).to(DEVICE, PRECISION) for each in (found["positions"], totals, found["forces"]))
    positions, energies, forces = values
    return torch.from_numpy(found["numbers"]).to(DEVICE), positions, energies, forces


@cache
def _computer(mode: str) -> Any:
    return _in_mode(computer(problem()).to(DEVICE), mode)


def aevs(mode: str, batch: int) -> Answer:
    """Seconds for the AEVs of all structures, `batch` at a time."""
    numbers, positions, *_ = _arrays()
    species = torch.where(numbers == 6, 0, 1)

    def work() -> None:
        with torch.no_grad():
            for first in range(0, len(positions), batch):
                _computer(mode)(species[first : first + batch], positions[first : first + batch])

    return {"seconds": timed(_finished(work))}


class Training:
    """A training run that goes on for as long as it is asked to."""

    def __init__(self, mode: str, cached: bool, forces: bool) -> None:
        """cached: AEVs computed once, before the first epoch."""
        whole = model(problem(), self_energies=False).to(DEVICE, PRECISION)
        numbers, self.positions, self.energies, self.reference = _arrays()
        self.numbers, self.forces = numbers, forces
        self.optimizer = torch.optim.Adam(whole.parameters(), lr=1e-3)
        self.inputs = self.positions
        if cached:
            self.numbers = whole.species_converter(numbers)
            self.inputs = _all_aevs(whole.aev_computer, self.numbers, self.positions)
            self.predict = _in_mode(whole.neural_networks, mode)
        else:
            scripted = _in_mode(whole, mode)
            self.predict = lambda numbers, positions: scripted((numbers, positions)).energies

    def epoch(self) -> None:
        """Train on 2000 structures in shuffled batches of 50 and validate on 48."""
        train = torch.from_numpy(problem()["train"])
        for index in train[torch.randperm(len(train))].split(50):
            loss = self._loss(index, train=True)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self._loss(torch.from_numpy(problem()["valid"]), train=False)

    def _loss(self, index: Tensor, train: bool) -> Tensor:
        """index: (M',) structures. Returns the mean squared errors of energies, and of forces, weighed."""
        inputs = self.inputs[index].requires_grad_(self.forces)
        with torch.set_grad_enabled(train or self.forces):
            energies = self.predict(self.numbers[index], inputs)
            loss = ((energies - self.energies[index]) ** 2).mean()
            if not self.forces:
                return loss
            forces = -torch.autograd.grad(energies.sum(), inputs, create_graph=train)[0]
            return (1 - FORCE_WEIGHT) * loss + FORCE_WEIGHT * ((forces - self.reference[index]) ** 2).mean()


@torch.no_grad()
def _all_aevs(made: nn.Module, species: Tensor, positions: Tensor) -> Tensor:
    return torch.cat([made(*each) for each in zip(species.split(50), positions.split(50), strict=True)])


@cache
def _training(mode: str, cached: bool, forces: bool) -> tuple[Training, float]:
    """The run, and the seconds of its first epoch."""
    made = Training(mode, cached, forces)
    return made, timed(_finished(made.epoch))


def epoch(mode: str, cached: bool, forces: bool, epochs: int) -> Answer:
    """Median seconds of an epoch, after one that warms up, and those of that one, which compiles."""
    training, first = _training(mode, cached, forces)
    return {
        "seconds": statistics.median(timed(_finished(training.epoch)) for _ in range(epochs)),
        "first_epoch_seconds": first,
    }


@cache
def _calculator(mode: str, members: int) -> Any:
    return model(problem(), members, HARTREE).to(DEVICE).ase(jit=mode == "script")


def _seconds_a_call(calculator: Any, calls: int) -> float:
    """Median seconds of energy and forces."""
    return median_of_calls(moving(calculator, problem()["numbers"][0], problem()["positions"][0]), calls)


def one_structure(mode: str, calls: int) -> Answer:
    """Median seconds of energy and forces by the model's ASE calculator."""
    return {"seconds": _seconds_a_call(_calculator(mode, 1), calls)}


def ensemble(mode: str, calls: int) -> Answer:
    """The mean of eight members over one member, in time."""
    several, one = (_seconds_a_call(_calculator(mode, members), calls) for members in (8, 1))
    return {"ratio": several / one, "seconds": several}


@cache
def _whole(mode: str) -> Any:
    return _in_mode(model(problem()).to(DEVICE, PRECISION), mode)


def many_structures(mode: str, batch: int) -> Answer:
    """Structures a second, energies and forces of all of them, `batch` at a time."""
    numbers, positions, *_ = _arrays()

    def work() -> None:
        for species, part in zip(numbers.split(batch), positions.split(batch), strict=True):
            inputs = part.clone().requires_grad_(True)
            torch.autograd.grad(_whole(mode)((species, inputs)).energies.sum(), inputs)

    return {"rate": len(positions) / timed(_finished(work))}


if __name__ == "__main__":
    serve(start)

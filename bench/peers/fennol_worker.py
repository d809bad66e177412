"""FeNNol's answers: an ANI-type model of its own modules, its training step, its ASE calculator, batches.

Its AEVs have our lengths, exponents and cutoffs, but its own rule for shifts. `graphs` says where neighbour lists are
made in each call: by numpy ("cpu"), or by jit-compiled code ("jit", which it calls gpu_preprocessing).

# M structures, n atoms of each, D AEV length
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import numpy as np
import optax
from fennol import FENNIX
from fennol.ase import FENNIXCalculator
from fennol.training.utils import get_loss_definition, get_train_step_function, get_validation_function

from bench.peers.moving import moving
from bench.peers.protocol import Answer, Task, median_of_calls, serve, timed

SETTINGS = json.loads(sys.argv[1])
FORCE_WEIGHT = 0.3
Arrays = dict[str, np.ndarray]


@cache
def problem() -> Arrays:
    """The arrays of problem.npz."""
    return dict(np.load(SETTINGS["problem"]))


def start() -> Mapping[str, Task]:
    """Threads, and the precision, which is one for the whole of JAX."""
    if hasattr(os, "sched_setaffinity"):
        # XLA has no setting for its number of threads: when first used it makes one a core that it may run on.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: SETTINGS["threads"]])
    jax.config.update("jax_enable_x64", SETTINGS["dtype"] == "float64")
    return {
        "aevs": aevs,
        "epoch": epoch,
        "one_structure": one_structure,
        "many_structures": many_structures,
    }


def _model(batch: int, with_networks: bool = True) -> FENNIX:
    """AEVs of 224 numbers, networks 224-48-24-12-1 for C and H, in eV; its lists hold what `batch` structures need."""
    found = problem()
    radial_cutoff, angular_cutoff = float(found["radial_cutoff"]), float(found["angular_cutoff"])
    filtered = {"cutoff": angular_cutoff, "parent_graph": "graph", "graph_key": "angular"}
    descriptor = {
        "module_name": "ANI_AEV",
        "species_order": ["C", "H"],
        "graph_angle_key": "angular",
        "radial_eta": float(found["radial_eta"]),
        "angular_eta": float(found["angular_eta"]),
        "radial_dist_divisions": 16,
        "angular_dist_divisions": 8,
        "angle_sections": 8,
        "zeta": float(found["zeta"]),
        "radial_start": float(found["radial_shifts"][0]),
        "angular_start": float(found["angular_shifts"][0]),
        "embedding_key": "aev",
    }
    networks = {
        "module_name": "CHEMICAL_NET",
        "species_order": ["C", "H"],
        "neurons": [48, 24, 12, 1],
        "activation": "chain(square, negative, exp)",
        "use_bias": False,
        "input_key": "aev",
        "squeeze": True,
    }
    made = FENNIX(
        cutoff=radial_cutoff,
        preprocessing=OrderedDict(
            angular={"module_name": "GRAPH_FILTER", **filtered},
            angles={"module_name": "GRAPH_ANGULAR_EXTENSION", "graph_key": "angular"},
        ),
        modules=OrderedDict(encoding=descriptor, **({"energy": networks} if with_networks else {})),
        energy_terms=["energy"] if with_networks else None,
        energy_unit="eV",
        rng_key=jax.random.PRNGKey(0),
        example_data=_inputs(np.arange(batch)),
    )
    made.variables = jax.tree_util.tree_map(lambda leaf: leaf.astype(SETTINGS["dtype"]), made.variables)
    return made


def _inputs(index: np.ndarray) -> dict[str, Any]:
    """Structures `index` (M,) as FeNNol's collation gives them, here without padding: all are of one size."""
    found = problem()
    size = found["numbers"].shape[1]
    return {
        "species": found["numbers"][index].reshape(-1).astype(np.int32),
        "coordinates": found["positions"][index].reshape(-1, 3).astype(SETTINGS["dtype"]),
        "natoms": np.full(len(index), size, np.int32),
        "batch_index": np.repeat(np.arange(len(index), dtype=np.int32), size),
        "true_atoms": np.ones(len(index) * size, bool),
        "true_sys": np.ones(len(index), bool),
    }


@cache
def _descriptors(graphs: str, batch: int) -> FENNIX:
    del graphs  # a model keeps the sizes of its neighbour lists, so each case has one of its own
    return _model(batch, with_networks=False)


def aevs(graphs: str, batch: int) -> Answer:
    """Seconds for the AEVs of all structures, `batch` at a time."""
    made, jitted = _descriptors(graphs, batch), graphs == "jit"

    def work() -> None:
        for index in _batches(batch):
            made(gpu_preprocessing=jitted, **_inputs(index))["aev"].block_until_ready()

    return {"seconds": timed(work)}


def _batches(batch: int) -> list[np.ndarray]:
    count = len(problem()["energies"])
    return np.split(np.arange(count), np.arange(batch, count, batch))


class Training:
    """FeNNol's training step and its loop's work a batch, for as long as it is asked to go on."""

    def __init__(self, graphs: str, forces: bool) -> None:
        """graphs: cpu or jit; forces: train to them too."""
        self.jitted, self.model, optimizer = graphs == "jit", _model(50), optax.adam(1e-3)
        terms = {"energy": {"key": "total_energy", "ref": "total_energy", "type": "mse", "weight": 1 - FORCE_WEIGHT}}
        if forces:
            terms["forces"] = {"ref": "forces", "type": "mse", "weight": FORCE_WEIGHT}
        settings = {"loss": terms}
        definition, *_ = get_loss_definition(settings, model_energy_unit="eV")
        functions = {"loss_definition": definition, "model": self.model, "evaluate": _forces if forces else _energy}
        self.step = get_train_step_function(**functions, optimizer=optimizer)
        self.validate = get_validation_function(**functions)
        variables = self.model.variables
        self.state = {"variables": variables, "opt_state": optimizer.init(variables), "step": 0, "epoch": 0}
        found = problem()
        self.energies = found["energies"] - found["self_energies"][np.where(found["numbers"] == 6, 0, 1)].sum(axis=1)

    def epoch(self) -> None:
        """Train on 2000 structures in shuffled batches of 50 and validate on 48."""
        order = np.random.default_rng(0).permutation(problem()["train"])
        for index in np.split(order, np.arange(50, len(order), 50)):
            _, self.state, _ = self.step(self._references(index), self._graphs(index), self.state)
        valid = problem()["valid"]
        found = self.validate(self._references(valid), self._graphs(valid), self.state["variables"])
        jax.block_until_ready((found[0], self.state["variables"]))

    def _graphs(self, index: np.ndarray) -> dict[str, Any]:
        made: dict[str, Any] = self.model.preprocess(use_gpu=self.jitted, **_inputs(index))
        return made

    def _references(self, index: np.ndarray) -> Arrays:
        values = {"total_energy": self.energies[index], "forces": problem()["forces"][index].reshape(-1, 3)}
        return {name: each.astype(SETTINGS["dtype"]) for name, each in values.items()}


def _energy(model: FENNIX, variables: Any, inputs: Any) -> Any:
    return model._total_energy(variables, inputs)[-1]


def _forces(model: FENNIX, variables: Any, inputs: Any) -> Any:
    return model._energy_and_forces(variables, inputs)[-1]


@cache
def _training(graphs: str, forces: bool) -> tuple[Training, float]:
    """The run, and the seconds of its first epoch, which compiles."""
    made = Training(graphs, forces)
    return made, timed(made.epoch)


def epoch(graphs: str, forces: bool, epochs: int) -> Answer:
    """Median seconds of an epoch, and the seconds of the first, which compiles."""
    training, first = _training(graphs, forces)
    return {"seconds": statistics.median(timed(training.epoch) for _ in range(epochs)), "first_epoch_seconds": first}


@cache
def _calculator(graphs: str) -> FENNIXCalculator:
    return FENNIXCalculator(_model(1), gpu_preprocessing=graphs == "jit", use_float64=SETTINGS["dtype"] == "float64")


def one_structure(graphs: str, calls: int) -> Answer:
    """Median seconds of energy and forces by its ASE calculator, and those of the first, which compiles."""
    numbers, positions = problem()["numbers"][0], problem()["positions"][0]

    def make_and_call() -> None:
        moving(_calculator(graphs), numbers, positions)()

    first = timed(make_and_call)
    seconds = median_of_calls(moving(_calculator(graphs), numbers, positions), calls)
    return {"seconds": seconds, "first_call_seconds": first}


@cache
def _whole(graphs: str, batch: int) -> FENNIX:
    del graphs  # as in _descriptors
    return _model(batch)


def many_structures(graphs: str, batch: int) -> Answer:
    """Structures a second, energies and forces of all of them, `batch` at a time."""
    made, jitted = _whole(graphs, batch), graphs == "jit"

    def work() -> None:
        for index in _batches(batch):
            np.asarray(made.energy_and_forces(gpu_preprocessing=jitted, **_inputs(index))[1])

    return {"rate": len(problem()["energies"]) / timed(work)}


if __name__ == "__main__":
    serve(start)

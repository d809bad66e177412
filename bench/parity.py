"""Does training here follow PyKinML's, number by number?

    python -m bench.parity RUN --data DIR [--tolerance 1e-6] [--force-path jacobian]

RUN is the `.json` of a reference run (its `.npz` beside it: starting weights and self energies); DIR holds its
databases. The run is replayed from the same weights over the same batches. The last line is the largest relative
difference over every metric of every epoch; the exit code is 1 where it is above the tolerance.

PyKinML has a fault in batches of mixed sizes (`bench.misaligned`). The reference runs on mixed sizes hold it, and
following them means to repeat it, here and nowhere else. `--right-jacobians` does not.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import typer

from bench.misaligned import misalign
from pykinml_func.config import RunConfig
from pykinml_func.config.aev import AEVConfig
from pykinml_func.config.build import build_config
from pykinml_func.data.batching import Packer, Source
from pykinml_func.data.elements import composition, species_of
from pykinml_func.data.featurize import fill_aevs, fill_jacobians, jacobian_shape
from pykinml_func.data.formats.database import read_databases
from pykinml_func.data.formats.sources import find_inputs
from pykinml_func.data.labels import has_forces, training_labels
from pykinml_func.errors import PyKinMLError
from pykinml_func.potential.self_energies import subtract_self_energies
from pykinml_func.training.metrics import add_sums, summary
from pykinml_func.training.optimizers import build_optimizer
from pykinml_func.training.schedules import ScheduleState, build_schedule
from pykinml_func.training.step import Objective, build_eval_step, build_train_step, init_state
from pykinml_func.types import Batch, Networks, Params, Structures

ForcePath = Literal["jacobian", "positions"]
_METRICS = {"L1": "mae", "L2": "rmse", "Linf": "max"}


class Reference(NamedTuple):
    """A reference run and its settings under our names."""

    settings: dict[str, Any]
    ids: dict[str, list[str]]
    epochs: list[dict[str, float]]
    networks: Networks
    self_energies: np.ndarray


def read_reference(path: Path) -> Reference:
    """Read `path` (.json) and the .npz beside it."""
    record = json.loads(path.read_text())
    settings = record["cfg"]
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        species, layers = range(len(settings["present_elements"])), range(len(settings["my_neurons"]))
        weights = tuple(
            torch.from_numpy(np.stack([arrays[f"init.NNs.{s}.{k}.linear.weight"] for s in species])) for k in layers
        )
        self_energies = arrays["sae"]
    ids = {part: record[f"{part}_ids"] for part in ("train", "valid", "test")}
    return Reference(settings, ids, record["epochs"], Networks(weights, ()), self_energies)


def replay(
    reference: Reference, data: Path, force_path: ForcePath, right_jacobians: bool = False
) -> Iterator[dict[str, float]]:
    """Train as the reference did; yields each epoch's metrics under PyKinML's names."""
    cfg, config = reference.settings, _config(reference.settings, data)
    model_config, training = config.model, config.training
    every_id = [name for part in reference.ids.values() for name in part]
    structures = read_databases(find_inputs(config.data.input), config.data.levels, ids=every_id)
    labels = training_labels(config.data, structures)
    source = _source(model_config.aev, labels, reference.self_energies, cfg["floss"], force_path)
    place = {name: m for m, name in enumerate(structures.ids)}
    members = {part: np.array([place[name] for name in names]) for part, names in reference.ids.items()}
    batches = {
        part: list(_batches(source, members[part], cfg[f"{short}_batch_size"]))
        for part, short in (("train", "tr"), ("valid", "vl"), ("test", "ts"))
    }
    if cfg["floss"] and not right_jacobians:
        counts = composition(source.species, source.offsets, source.n_species)
        learned = np.concatenate([members["train"], members["valid"]])
        for part, listed in (("train", learned), ("valid", learned), ("test", members["test"])):
            batches[part] = [misalign(batch, counts[listed].max(axis=0)) for batch in batches[part]]
    optimizer, objective = build_optimizer(training), Objective(training.forces, cfg["fw"], training.learn_loss_weights)
    step = build_train_step(model_config, optimizer, objective)
    evaluate = build_eval_step(model_config, training.forces)
    params = Params((reference.networks,), torch.from_numpy(reference.self_energies).unsqueeze(0))
    state = init_state(params, optimizer, objective, training.learning_rate)
    schedule, advance = ScheduleState(training.learning_rate), build_schedule(training)
    for _ in reference.epochs:
        found, steps = {}, []
        for batch in batches["train"]:
            state, sums = step(state, batch)
            steps.append(sums)
        found["train"] = summary(add_sums(steps))
        for part in ("valid", "test"):
            found[part] = summary(add_sums(evaluate(state.params, batch) for batch in batches[part]))
        schedule = advance(schedule, found["valid"]["energy_rmse"])
        state = state._replace(learning_rate=torch.tensor(schedule.learning_rate, dtype=torch.float64))
        yield _renamed(found, cfg["floss"])


_SETTINGS = (
    *("present_elements", "aev_params", "cuttoff_radius", "beta", "my_neurons", "my_actfn"),
    *("optimizer", "weight_decay", "learning_rate", "lrscheduler", "decayrate", "LR_patience", "LR_threshold"),
    *("fidlevel", "delta", "floss", "optimize_force_weight"),
)
"""PyKinML's names of the settings that a run is replayed with."""


def _config(cfg: dict[str, Any], data: Path) -> RunConfig:
    given = {name: cfg[name] for name in _SETTINGS} | {"input": [str(data / cfg["input_data_fname"])]}
    given |= {"fidlevel_lf": cfg["fidlevel_lf"]} if cfg["delta"] else {}
    return build_config(given | {"no_biases": True})


def _source(
    aev: AEVConfig, structures: Structures, self_energies: np.ndarray, forces: bool, force_path: ForcePath
) -> Source:
    species = species_of(aev.elements, structures)
    counts = composition(species, structures.offsets, len(aev.elements))
    reference, saes = torch.from_numpy(structures.energies), torch.from_numpy(self_energies).unsqueeze(0)
    energies = subtract_self_energies(saes, torch.from_numpy(counts), reference).numpy()
    source = Source(species, structures.positions, structures.offsets, len(aev.elements), energies)
    if forces:
        source = source._replace(forces=structures.forces, has_forces=has_forces(structures))
    if not forces or force_path == "jacobian":
        aevs = np.empty((len(species), aev.length))
        fill_aevs(aev, structures, "native", aevs, lambda _: None)
        source = source._replace(aevs=aevs)
    if forces and force_path == "jacobian":
        jacobians = np.empty(jacobian_shape(aev, structures.sizes))
        fill_jacobians(aev, structures, "native", jacobians, lambda _: None)
        source = source._replace(jacobians=jacobians)
    return source


def _batches(source: Source, members: np.ndarray, batch_size: int) -> Iterator[Batch]:
    return Packer(source, members, batch_size, torch.float64, torch.device("cpu")).batches(members)


def _renamed(found: dict[str, dict[str, float]], forces: bool) -> dict[str, float]:
    kinds = {"": "energy", "f": "force"} if forces else {"": "energy"}
    return {
        f"{part} {letter}{theirs} loss": metrics[f"{kind}_{ours}"]
        for part, metrics in found.items()
        for letter, kind in kinds.items()
        for theirs, ours in _METRICS.items()
    }


def largest_difference(reference: dict[str, float], found: dict[str, float]) -> tuple[float, str]:
    """The largest relative difference of one epoch and the metric that has it. Raises KeyError for a metric not
    computed.
    """
    metrics = [name for name in reference if name.endswith("loss")]
    differences = [(abs(found[name] / reference[name] - 1), name) for name in metrics]
    return max(differences, key=lambda pair: (math.isnan(pair[0]), pair[0]))


def main(
    run: Annotated[Path, typer.Argument(help="the reference run's .json")],
    data: Annotated[Path, typer.Option(help="directory of its databases")],
    tolerance: Annotated[float, typer.Option(help="largest relative difference allowed")] = 1e-6,
    force_path: Annotated[str, typer.Option(help="jacobian, positions or both")] = "both",
    right_jacobians: Annotated[
        bool, typer.Option(help="do not repeat PyKinML's fault in batches of mixed sizes")
    ] = False,
) -> None:
    """Replay a PyKinML reference run and compare every metric of every epoch."""
    paths: list[ForcePath] = [path for path in ("jacobian", "positions") if force_path in (path, "both")]
    try:
        if not paths:
            raise PyKinMLError(f"--force-path must be jacobian, positions or both, got {force_path}")
        reference = read_reference(run)
        worst = 0.0
        for path in paths if reference.settings["floss"] else paths[:1]:
            for number, (theirs, ours) in enumerate(
                zip(reference.epochs, replay(reference, data, path, right_jacobians), strict=True)
            ):
                difference, metric = largest_difference(theirs, ours)
                print(f"{run.stem}, {path}, epoch {number}: {difference:.2e} ({metric})")
                worst = max(worst, difference, key=lambda value: (math.isnan(value), value))
    except (PyKinMLError, OSError) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    print(f"largest relative difference {worst:.3e}")
    if not worst <= tolerance:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

"""What every tool is given: C5H5 and its split, AEV grids, networks, and our values for the first structures.

# M structures, n atoms of each, S species, D AEV length, K structures that values are checked on
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pykinml_func import AEVConfig, ModelConfig, Params, Predictor, init_params, read_databases, save_model
from pykinml_func.data.featurize import fill_aevs
from pykinml_func.data.formats.sources import find_inputs
from pykinml_func.types import Structures

AEV = AEVConfig(elements=("C", "H"))
MODEL = ModelConfig(aev=AEV, biases=False)
"""224-48-24-12-1, Gaussian, without biases (PyKinML has no others)"""
TRAINED, VALIDATED = 2000, 48
LONG_RUN = 1000
"""epochs of the runs whose first ones are timed, so that `compile = auto` decides as it does for real runs"""
CHECKED = 20
MEMBERS = 8


def read(data: Path) -> Structures:
    """The 2112 structures."""
    return read_databases(find_inputs([str(data / "C5H5.db")]), [1])


def training_settings(data: Path) -> dict[str, Any]:
    """What `fit` is told of the structures, their split and the networks. data: the folder of the example data."""
    return {
        "input": [str(data / "C5H5.db")],
        "split_files": [str(data / "sample_tvt.txt")],
        "split": (TRAINED, VALIDATED, 0),
        "biases": False,
        "epochs": LONG_RUN,
    }


def networks(member: int = 0, self_energies: tuple[float, ...] = (0.0, 0.0)) -> Params:
    """The parameters of one member of the ensemble; 0 is the model of every other row."""
    drawn = init_params(MODEL, torch.Generator().manual_seed(member))
    return drawn._replace(self_energies=torch.tensor([self_energies], dtype=torch.float64))


def write_problem(data: Path, scratch: Path) -> Path:
    """Write problem.npz, and the members as model files, to `scratch`. Returns the path of problem.npz."""
    structures = read(data)
    energies = structures.energies[:, 0]
    # One formula cannot tell the elements apart; any self energies that sum to the mean do.
    self_energies = (float(energies.mean()) / 5 + 17.0, -17.0)
    members = [networks(member, self_energies) for member in range(MEMBERS)]
    for member, params in enumerate(members):
        save_model(scratch / f"member_{member}.safetensors", MODEL, params)
    train, valid = _split(data / "sample_tvt.txt", list(structures.ids))
    arrays = {
        "numbers": structures.numbers.reshape(len(energies), -1),
        "positions": structures.positions.reshape(len(energies), -1, 3),
        "energies": energies,
        "forces": structures.forces[:, 0].reshape(len(energies), -1, 3),
        "self_energies": np.array(self_energies),
        "train": train,
        "valid": valid,
        **_grids(),
        **_weights(members),
        **_values(structures, members[0]),
    }
    path = scratch / "problem.npz"
    np.savez(path, **arrays)
    return path


def _split(path: Path, ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Structures to train on and to validate on: those of the split file that it does not test."""
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    place = {name: m for m, name in enumerate(ids)}
    learned = np.array([place[name] for name, kind, *_ in lines if kind == "2"])
    return learned[:TRAINED], learned[TRAINED:]


def _grids() -> dict[str, Any]:
    names = ("radial_cutoff", "angular_cutoff", "radial_eta", "angular_eta", "zeta", "beta")
    grids = ("radial_shifts", "angular_shifts", "angular_sections")
    return {name: np.array(getattr(AEV, name)) for name in (*names, *grids)}


def _weights(members: list[Params]) -> dict[str, np.ndarray]:
    """weights_LAYER: (MEMBERS,S,out,in)."""
    layers = zip(*(params.networks[0].weights for params in members), strict=True)
    return {f"weights_{layer}": torch.stack(same).numpy() for layer, same in enumerate(layers)}


def _values(structures: Structures, params: Params) -> dict[str, np.ndarray]:
    """What we say of the first structures: AEVs (K,n,D), energies (K,) eV, forces (K,n,3) eV/Å."""
    few = structures.take(np.arange(CHECKED))
    aevs = np.empty((len(few.numbers), AEV.length))
    fill_aevs(AEV, few, "native", aevs, lambda _: None)
    found = Predictor(MODEL, params).predict(images(few))
    return {
        "our_aevs": aevs.reshape(CHECKED, -1, AEV.length),
        "our_energies": np.array([each.energy for each in found]),
        "our_forces": np.array([each.forces for each in found]),
    }


def images(structures: Structures) -> list[Any]:
    """As ASE's Atoms."""
    from ase import Atoms

    ends = structures.offsets[1:-1]
    pairs = zip(np.split(structures.numbers, ends), np.split(structures.positions, ends), strict=True)
    return [Atoms(numbers=numbers, positions=positions) for numbers, positions in pairs]

"""The potential as an ASE calculator: for relaxation, molecular dynamics, vibrations and whatever else ASE drives.

# E members, L fidelity levels, S species, N atoms a species (padded), n atoms of the structure
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from torch import Tensor
from torch.utils._pytree import tree_map

from pykinml_func.config import ModelConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.errors import DataError, ModelError
from pykinml_func.inference.checks import checked_species, structure_label
from pykinml_func.inference.low_level import check_low_level, low_level_result
from pykinml_func.potential.energy import packing_of
from pykinml_func.potential.ensemble import member_energies_and_forces, stack_members
from pykinml_func.potential.features import Geometry, TabulatedGeometry
from pykinml_func.training.compilation import RecordedStep
from pykinml_func.training.model_file import load_model
from pykinml_func.types import Params

Model = str | Path | tuple[ModelConfig, Params]
"""A model file, or what `load_model` returns."""


class _Molecule(NamedTuple):
    """What of the evaluation depends on the species alone."""

    step: RecordedStep
    """positions (S,N,3) Å -> energies (E,) eV, self energies excluded, and forces (E,S,N,3) eV/Å"""
    slots: np.ndarray
    """(S,N): which atom sits in each place"""
    rows: np.ndarray
    """(n,): the place of each atom in the flattened (S,N)"""
    self_energies: np.ndarray
    """(E,) eV"""


class PyKinMLCalculator(Calculator):
    """Energies (eV) and forces (eV/Å) of molecules, the atoms in any order.

    Of several models it gives the mean, and their standard deviations as `results["energy_std"]` and
    `results["forces_std"]`.
    """

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012 (ASE declares it so)

    def __init__(self, model: Model | Sequence[Model], *, low_level: Calculator | None = None, **kwargs: Any) -> None:
        """model: a model file, what `load_model` returns, or a list of those; kwargs: those of ASE's Calculator.

        low_level: what a model of delta learning is added to; without it, energies and forces are the difference.
        Raises ModelError for a file that is no model, for models that differ in more than their parameters, and for a
        low level that the model cannot use.
        """
        super().__init__(**kwargs)
        self.model_config, members = _load(model)
        check_low_level(self.model_config, low_level)
        self.low_level = low_level
        self.members: Params = tree_map(torch.Tensor.detach, stack_members(members))
        self._molecules: dict[bytes, _Molecule] = {}

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),  # noqa: ARG002 (ASE's signature)
        system_changes: Sequence[str] = all_changes,  # noqa: ARG002
    ) -> None:
        """Fill `results`; ASE calls it when the atoms have changed.

        Raises ModelError for a periodic structure or an element that the model does not know, DataError for one that
        has no atoms, positions that are not finite or two atoms in one place.
        """
        if atoms is not None:
            self.atoms = atoms.copy()  # as ASE's own calculate, less the directory that it makes for files
        structure = self.atoms
        if structure is None:
            raise DataError("calculate needs a structure, got none; give it as atoms")
        energies, forces = self._members_results(structure)
        several = len(energies) > 1
        value, force = (float(energies.mean()), forces.mean(axis=0)) if several else (float(energies[0]), forces[0])
        if self.low_level is not None:
            low_energy, low_force = low_level_result(structure, self.low_level, True, structure_label(structure))
            value, force = value + low_energy, force + low_force
        # ASE's optimizers ask for free_energy; there is no electronic temperature here, so the two are one.
        self.results = {"energy": value, "free_energy": value, "forces": force}
        if several:
            self.results |= {"energy_std": float(energies.std(ddof=1)), "forces_std": forces.std(axis=0, ddof=1)}

    def _members_results(self, structure: Atoms) -> tuple[np.ndarray, np.ndarray]:
        """Energies (E,) eV and forces (E,n,3) eV/Å of every member at the highest level."""
        species = checked_species(self.model_config.aev.elements, structure)
        key = species.tobytes()
        if key not in self._molecules:
            self._molecules[key] = self._molecule(species)
        molecule = self._molecules[key]
        # seen from an atom, so that float32 keeps its digits for distances
        packed = (structure.positions - structure.positions[0])[molecule.slots]
        energies, forces = molecule.step(torch.from_numpy(packed).to(self.members.networks[0].weights[0]))
        by_atom = forces.flatten(1, 2).cpu().numpy()[:, molecule.rows]
        return energies.cpu().numpy() + molecule.self_energies, by_atom.astype(np.float64, copy=False)

    def _molecule(self, species: np.ndarray) -> _Molecule:
        """species: (n,)."""
        weight, n_species = self.members.networks[0].weights[0], len(self.model_config.aev.elements)
        n = len(species)
        source = Source(species, np.zeros((n, 3)), np.array([0, n]), n_species, np.zeros((1, 1)))
        batch: Any = Packer(source, np.array([0]), 1, weight.dtype, weight.device).pack(np.array([0]))
        slots, mask = (each.numpy() for each in packing_of(torch.from_numpy(species), n_species))
        rows = np.flatnonzero(mask)[slots[mask].argsort()]
        self_energies = self.members.self_energies[:, -1, species].sum(dim=1).cpu().numpy()
        step = RecordedStep(partial(self._evaluate, batch.features, torch.from_numpy(mask).to(weight)))
        return _Molecule(step, slots, rows, self_energies)

    def _evaluate(
        self, features: Geometry | TabulatedGeometry, mask: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What `_Molecule.step` gives. features: those of other positions; mask: (S,N) 1 where there is an atom."""
        features = features._replace(positions=positions)
        return member_energies_and_forces(self.model_config, self.members.networks, features, mask)


def _load(model: Model | Sequence[Model]) -> tuple[ModelConfig, list[Params]]:
    """The config that all models share, and the parameters of each. Raises ModelError."""
    alone = isinstance(model, str | Path) or (len(model) == 2 and isinstance(model[0], ModelConfig))
    models: Any = [model] if alone else model
    if not models:
        raise ModelError("model must name at least one model, got an empty list")
    loaded = [load_model(each) if isinstance(each, str | Path) else each for each in models]
    first = loaded[0][0]
    for place, (config, _) in enumerate(loaded):
        if config != first:
            names = [name for name in ModelConfig.model_fields if getattr(config, name) != getattr(first, name)]
            raise ModelError(
                f"models of one calculator must share their settings, and number {place + 1} differs from the first in "
                f"{', '.join(names)}; leave it out"
            )
    return first, [params for _, params in loaded]

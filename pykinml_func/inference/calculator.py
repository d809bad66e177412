"""The potential as an ASE calculator: for relaxation, molecular dynamics, vibrations and whatever else ASE drives.

# E members, n atoms of the structure
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.outputs import Properties, all_outputs
from torch.utils._pytree import tree_map

from pykinml_func.config import ModelConfig
from pykinml_func.errors import ConfigError, DataError, ExtrapolationError, ExtrapolationWarning, ModelError
from pykinml_func.inference.checks import checked_species, structure_label
from pykinml_func.inference.low_level import check_calculator, check_low_level, low_level_result
from pykinml_func.inference.molecule import Molecule
from pykinml_func.inference.uncertainty import scales_of, spread_numbers
from pykinml_func.potential.ensemble import stack_members
from pykinml_func.training.model_file import join_ensembles, load_ensemble
from pykinml_func.types import Ensemble, Params

Model = str | Path | Ensemble | tuple[ModelConfig, Params]
"""A model file, which may hold several members, or what `load_ensemble` or `load_model` returns."""

OnExtrapolation = Literal["ignore", "warn", "stop"]

_MOST_MOLECULES = 64
"""Orders of atoms that a calculator is ready for at a time; each takes some 0.2 MB."""


class PyKinMLCalculator(Calculator):
    """Energies (eV), forces (eV/Å) and Hessians (eV/Å²) of molecules, the atoms in any order.

    Of several members the energy is their mean. `results` holds, besides ASE's properties, `all_energies` (E,) and
    `all_forces` (E,n,3) of each; of several, `energy_std` and `forces_std` (n,3), standard deviations of the members,
    calibrated where the model file says how; and `extrapolation`, where the file says what the model was trained on:
    above 1 a structure lies beyond all that was seen there, by the members' spread or by the distance of its AEVs.
    Copies and pickles of a calculator are whole calculators.
    """

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012 (ASE declares it so)
    default_parameters = {"on_extrapolation": "ignore", "extrapolation_limit": 1.0}  # noqa: RUF012
    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012 (the model knows neither)
    discard_results_on_any_change = True

    def __init__(
        self,
        model: Model | Sequence[Model],
        *,
        low_level: Calculator | None = None,
        on_extrapolation: OnExtrapolation = "ignore",
        extrapolation_limit: float = 1.0,
        **kwargs: Any,
    ) -> None:
        """model: a model file, what `load_ensemble` or `load_model` returns, or a list of those, whose members are then
        one ensemble; kwargs: atoms, label and directory, those of ASE's Calculator.

        low_level: what a model of delta learning is added to; without it, energies and forces are the difference.
        on_extrapolation: whether a structure of more than `extrapolation_limit` is a warning or an error. Raises
        ModelError for a file that is no model, for models that differ in more than their parameters, and for a low
        level that the model cannot use; ConfigError where that is no calculator, or where it could never warn or stop.
        """
        ensemble = ensemble_of(model)
        check_low_level(ensemble.model_config, low_level)
        if low_level is not None:
            check_calculator(low_level)
        self._ensemble = ensemble._replace(members=tree_map(torch.Tensor.detach, ensemble.members))
        self._scales = scales_of(ensemble.calibration)
        self._molecules: dict[bytes, Molecule] = {}
        self._low_level = low_level
        super().__init__(on_extrapolation=on_extrapolation, extrapolation_limit=extrapolation_limit, **kwargs)

    @property
    def model_config(self) -> ModelConfig:
        """What all members share."""
        return self._ensemble.model_config

    @property
    def members(self) -> Params:
        """Parameters, every leaf with a leading axis E."""
        return self._ensemble.members

    @property
    def low_level(self) -> Calculator | None:
        """What the model is added to; make another calculator for another one, as results of this one would stay."""
        return self._low_level

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Change `on_extrapolation` or `extrapolation_limit`, and forget the results. Returns what has changed.

        Raises ConfigError for other parameters, or values that they cannot have.
        """
        if unknown := sorted(kwargs.keys() - self.default_parameters):
            raise ConfigError(
                f"parameters of the calculator are {', '.join(self.default_parameters)}, got {', '.join(unknown)}; "
                "leave it out"
            )
        self._check(**{**self.parameters, **kwargs})
        changed: dict[str, Any] = super().set(**kwargs)
        return changed

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),  # noqa: ARG002 (ASE's signature)
        system_changes: Sequence[str] = all_changes,  # noqa: ARG002
    ) -> None:
        """Fill `results`; ASE calls it when the atoms have changed.

        Raises ModelError for a periodic structure or an element that the model does not know, DataError for one that
        has no atoms, positions that are not finite or two atoms in one place; ExtrapolationError where that was asked
        for.
        """
        if atoms is not None:
            self.atoms = atoms.copy()  # as ASE's own calculate, less the directory that it makes for files
        self.results = {}  # of another structure: what fails below leaves none
        structure = self._given(None)
        energies, forces, distance = self._molecule(structure).evaluate(structure.positions)
        several, own = len(energies) > 1, dict[str, Any]()
        if several:
            own = {
                "energy_std": self._scales.energy * float(energies.std(ddof=1)),
                "forces_std": self._scales.force * forces.std(axis=0, ddof=1),
            }
        own |= self._extrapolation(structure, own.get("energy_std", math.nan), distance)
        if self.low_level is not None:
            low_energy, low_force = low_level_result(structure, self.low_level, True, structure_label(structure))
            energies, forces = energies + low_energy, forces + low_force
        value, force = (float(energies.mean()), forces.mean(axis=0)) if several else (float(energies[0]), forces[0])
        # ASE's optimizers ask for free_energy; there is no electronic temperature here, so the two are one.
        self.results = {"energy": value, "free_energy": value, "forces": force.copy()}
        self.results |= {"all_energies": energies, "all_forces": forces, **own}

    def get_hessian(self, atoms: Atoms | None = None) -> np.ndarray:
        """Exact second derivatives of the energy in float64, in the form of Sella's `hessian_function`.

        atoms: by default those of the last calculation. Returns (3n,3n) eV/Å². Raises as `calculate`, but never for
        extrapolation, and ModelError for a low level without a `get_hessian` of its own.
        """
        structure = self._given(atoms)
        if self.low_level is not None and not hasattr(self.low_level, "get_hessian"):
            raise ModelError(
                f"an exact Hessian needs a low level that has get_hessian, got {type(self.low_level).__name__}; "
                "differentiate the forces instead, as ase.vibrations.Vibrations does, or leave hessian_function out"
            )
        found = self._molecule(structure).hessian(structure.positions)
        if self.low_level is not None:
            found += np.reshape(self.low_level.get_hessian(structure), found.shape)
        return found

    def export_properties(self) -> Properties:
        """The results that ASE has a name for."""
        return Properties({name: value for name, value in self.results.items() if name in all_outputs})

    def __getstate__(self) -> dict[str, Any]:
        """All but what was made for the molecules so far, which is made again where it is needed."""
        return self.__dict__ | {"_molecules": {}}

    def _given(self, atoms: Atoms | None) -> Atoms:
        structure = self.atoms if atoms is None else atoms
        if structure is None:
            raise DataError("the calculator needs a structure, got none; give it as atoms")
        return structure

    def _check(self, on_extrapolation: str, extrapolation_limit: float) -> None:
        """Raises ConfigError."""
        if on_extrapolation not in get_args(OnExtrapolation):
            allowed = ", ".join(get_args(OnExtrapolation))
            raise ConfigError(f"on_extrapolation must be one of {allowed}, got {on_extrapolation}")
        if not extrapolation_limit > 0:
            raise ConfigError(f"extrapolation_limit must be above 0, got {extrapolation_limit}; 1 is the farthest seen")
        has_spread = self._ensemble.n_members > 1 and math.isfinite(self._scales.spread_limit)
        if on_extrapolation != "ignore" and not has_spread and self._ensemble.domain is None:
            raise ConfigError(
                f"on_extrapolation = {on_extrapolation} needs a model that knows what it was trained on, and this one "
                "holds neither a domain nor the calibration of an ensemble; train it anew, which writes both, give one "
                "ensemble in place of a list of models, or leave on_extrapolation out"
            )

    def _extrapolation(self, structure: Atoms, energy_std: float, distance: float) -> dict[str, float]:
        """The number to be among the results, where it is known. Raises ExtrapolationError."""
        spread = math.nan
        if not math.isnan(self._scales.spread_limit + energy_std):
            spread = float(spread_numbers(self._scales, np.array(energy_std), np.array(len(structure))))
        known = [number for number in (spread, distance) if not math.isnan(number)]
        if not known:
            return {}
        number = max(known)
        action, limit = self.parameters["on_extrapolation"], self.parameters["extrapolation_limit"]
        if action != "ignore" and number > limit:
            message = (
                f"{structure_label(structure)} must lie within {limit:g} of what the model was trained on, got "
                f"{number:.3g} (spread of the members {spread:.3g}, distance of the AEVs {distance:.3g}); train the "
                "model to such structures too (`pykinml select` picks which), or raise extrapolation_limit"
            )
            if action == "stop":
                raise ExtrapolationError(message)
            warnings.warn(message, ExtrapolationWarning, stacklevel=2)
        return {"extrapolation": number}

    def _molecule(self, structure: Atoms) -> Molecule:
        """That of an earlier call, or a new one, for which the one not used for longest goes. Raises as
        `checked_species`.
        """
        species = checked_species(self.model_config.aev.elements, structure)
        key = species.tobytes()
        found = self._molecules.pop(key, None) or Molecule(self._ensemble, species)
        self._molecules[key] = found  # behind all others
        if len(self._molecules) > _MOST_MOLECULES:
            del self._molecules[next(iter(self._molecules))]
        return found


def ensemble_of(model: Model | Sequence[Model]) -> Ensemble:
    """All members of one model or of several, and what is known of where to trust them together. Raises ModelError."""
    alone = isinstance(model, str | Path | Ensemble) or (len(model) == 2 and isinstance(model[0], ModelConfig))
    models: Any = [model] if alone else model
    if not models:
        raise ModelError("model must name at least one model, got an empty list")
    names = [str(each) if isinstance(each, str | Path) else f"number {place}" for place, each in enumerate(models, 1)]
    return join_ensembles([_ensemble(each) for each in models], names)


def _ensemble(model: Model) -> Ensemble:
    if isinstance(model, str | Path):
        return load_ensemble(model)
    return model if isinstance(model, Ensemble) else Ensemble(model[0], stack_members([model[1]]))

"""PyKinML's calculator under its own name and arguments, for scripts and programs that were written for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import all_changes
from pydantic import ValidationError
from torch.utils._pytree import tree_map

from pykinml_func.config import AEVConfig
from pykinml_func.errors import ConfigError, ModelError
from pykinml_func.inference.calculator import PyKinMLCalculator
from pykinml_func.potential.ensemble import stack_members
from pykinml_func.training.model_file import load_ensemble
from pykinml_func.training.pykinml_checkpoint import convert_pykinml, read_pykinml_checkpoint
from pykinml_func.types import Ensemble

_NAMES = {
    "elements": "present_elements",
    "radial_cutoff": "R_c[0]",
    "angular_cutoff": "R_c[1]",
    "n_radial": "nrho_rad",
    "n_angular_radial": "nrho_ang",
    "n_angular": "nalpha",
}
"""PyKinML's names of what its checkpoints do not hold, and our models do."""


class Nn_surr(PyKinMLCalculator):  # noqa: N801 (PyKinML's name)
    """`PyKinMLCalculator` with the arguments and results of PyKinML's `Nn_surr`, and its attributes `multinn`, `tnsr`,
    `device`, `nrho_rad`, `nrho_ang`, `nalpha` and `R_c`.

    Differences: `tnsr` is off by default, as ASE (and KinBot's own `Nn_surr`) needs numbers and arrays; forces are
    there whether they were asked for or not; of several models `all_energies` is (E,), `all_forces` (E,n,3) and
    `forces_std` (n,3). A single model has an `energy_std` and `forces_std` of 0, as there. There is no `surrogate`,
    which held the networks there: see `members`.
    """

    def __init__(  # noqa: PLR0913, PLR0917 (PyKinML's arguments)
        self,
        fname: str | Path | Sequence[str | Path],
        restart: None = None,
        ignore_bad_restart_file: bool = False,  # noqa: ARG002 (there is nothing to restart from)
        label: str = "surrogate",
        atoms: Atoms | None = None,
        tnsr: bool = False,
        device: str | torch.device = "cpu",
        nrho_rad: int | None = None,
        nrho_ang: int | None = None,
        nalpha: int | None = None,
        R_c: Sequence[float] | None = None,
        mf: bool | None = None,
        present_elements: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """fname: model files (.safetensors) or checkpoints of PyKinML (.pt), of which several are an ensemble; kwargs:
        those of PyKinMLCalculator.

        tnsr: whether results are tensors; device: where the model is evaluated. nrho_rad, nrho_ang, nalpha (sizes of
        the AEVs), R_c (cutoffs in Å), mf (whether it has two levels) and present_elements say what a .pt does not hold,
        by default PyKinML's 16, 8, 8, [5.2, 3.8] and C, H; a .safetensors does hold it, and is refused where it
        differs. Raises ModelError for a file that cannot be used, ConfigError for an argument that cannot.
        """
        if restart is not None:
            raise ConfigError(f"restart must be None, got {restart}: a potential has nothing to restart from")
        cutoffs = (None, None) if R_c is None else tuple(R_c)
        if len(cutoffs) != 2:
            raise ConfigError(f"R_c must be the radial and the angular cutoff in Å, got {R_c}")
        elements = None if present_elements is None else tuple(present_elements)
        settings = dict(zip(_NAMES, (elements, *cutoffs, nrho_rad, nrho_ang, nalpha), strict=True))
        given = {name: value for name, value in settings.items() if value is not None}
        files = [fname] if isinstance(fname, str | Path) else fname
        super().__init__([_load(Path(file), device, given, mf) for file in files], label=label, atoms=atoms, **kwargs)
        aev = self.model_config.aev
        self.tnsr, self.device, self.multinn = tnsr, device, len(self.members.self_energies) > 1
        self.nrho_rad, self.nrho_ang, self.nalpha = aev.n_radial, aev.n_angular_radial, aev.n_angular
        self.R_c = [aev.radial_cutoff, aev.angular_cutoff]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy", "forces"),
        system_changes: Sequence[str] = all_changes,
        args: None = None,  # noqa: ARG002 (PyKinML's, which does nothing there either)
    ) -> None:
        """As that of PyKinMLCalculator."""
        super().calculate(atoms, properties, system_changes)
        if not self.multinn:
            self.results |= {"energy_std": 0.0, "forces_std": np.zeros_like(self.results["forces"])}
        if self.tnsr:
            self.results = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in self.results.items()}


def _load(file: Path, device: str | torch.device, given: Mapping[str, Any], mf: bool | None) -> Ensemble:
    """The models of one file. given: settings of AEVConfig. Raises ModelError, and ConfigError for a `device`."""
    try:
        torch.zeros(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, as it lacks the device or was built without
        raise ConfigError(f"device must be one that torch has here, got {device}: {error}") from None
    if file.suffix != ".pt":
        found = load_ensemble(file, device)
        _check_same(file, found.model_config.aev, given)
        _check_levels(file, found.model_config.n_levels, mf)
        return found
    return _converted(file, device, given, mf)


def _converted(file: Path, device: str | torch.device, given: Mapping[str, Any], mf: bool | None) -> Ensemble:
    """The model of a checkpoint of PyKinML. Raises ModelError."""
    checkpoint = read_pykinml_checkpoint(file)
    n_levels = len(checkpoint.networks)
    _check_levels(file, n_levels, mf)
    try:
        aev = AEVConfig(**{"elements": ("C", "H"), **given})
        config, params = convert_pykinml(checkpoint, aev, tuple(range(2 - n_levels, 2)))
    except (ModelError, ValidationError) as error:
        names = ", ".join(f"{name} is {theirs}" for name, theirs in _NAMES.items())
        raise ModelError(f"{file} cannot be used with these arguments (where {names}): {error}") from None
    return Ensemble(config, stack_members([tree_map(lambda leaf: leaf.to(device), params)]))


def _check_same(file: Path, aev: AEVConfig, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if getattr(aev, name) != value:
            raise ModelError(
                f"{_NAMES[name]} must be {getattr(aev, name)}, which {file} was trained with and holds, got {value}; "
                "leave it out"
            )


def _check_levels(file: Path, n_levels: int, mf: bool | None) -> None:
    if mf is not None and mf != (n_levels > 1):
        raise ModelError(f"mf must be {n_levels > 1} for {file}, which has levels: {n_levels}, got {mf}; leave it out")

"""The potential as an ASE calculator: for relaxation, molecular dynamics, vibrations and whatever else ASE drives.

# n atoms of the structure
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from torch import Tensor
from torch.utils._pytree import tree_map

from pykinml_func.config import ModelConfig
from pykinml_func.errors import DataError
from pykinml_func.inference.checks import checked_species
from pykinml_func.inference.low_level import check_low_level, low_level_result
from pykinml_func.potential.forces import energy_and_forces
from pykinml_func.training.checkpoint import load_model
from pykinml_func.training.compilation import CompiledStep, repays_compilation
from pykinml_func.types import Params

_OfPositions = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(n,3) Å -> () eV and (n,3) eV/Å"""


class PyKinMLCalculator(Calculator):
    """Energies (eV) and forces (eV/Å) of molecules, the atoms in any order."""

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012 (ASE declares it so)

    def __init__(
        self,
        model: str | Path | tuple[ModelConfig, Params],
        *,
        compile: bool = False,
        low_level: Calculator | None = None,
        **kwargs: Any,
    ) -> None:
        """model: a model file, or what `load_model` returns; kwargs: those of ASE's Calculator.

        low_level: what a model of delta learning is added to; without it, energies and forces are the difference.

        compile: for long runs of one molecule, whose steps then take a tenth of the time; its first step compiles for a
        minute, or for some seconds where the user's cache holds the compiled code. Raises ModelError for a file that is
        no model and a low level that the model cannot use, ConfigError where `compile` finds no C++ compiler.
        """
        super().__init__(**kwargs)
        self.model_config, params = load_model(model) if isinstance(model, str | Path) else model
        check_low_level(self.model_config, low_level)
        self.low_level = low_level
        self.params: Params = tree_map(torch.Tensor.detach, params)
        self._compile = repays_compilation("on" if compile else "off", None, 0, 0.0)
        self._compiled: dict[tuple[int, ...], _OfPositions] = {}

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill `results`; ASE calls it when the atoms have changed.

        Raises ModelError for a periodic structure or an element that the model does not know, DataError for one that
        has no atoms, positions that are not finite or two atoms in one place.
        """
        super().calculate(atoms, properties, system_changes)
        structure = self.atoms
        if structure is None:
            raise DataError("calculate needs a structure, got none; give it as atoms")
        label = f"the structure ({structure.get_chemical_formula()})"
        species = checked_species(self.model_config.aev.elements, structure, label)
        device = self.params.self_energies.device
        positions = torch.from_numpy(structure.positions).to(device)
        energy, forces = self._function_of(torch.from_numpy(species).to(device), positions)(positions)
        value, force = energy.item(), forces.double().cpu().numpy()
        if self.low_level is not None:
            low_energy, low_force = low_level_result(structure, self.low_level, True, label)
            value, force = value + low_energy, force + low_force
        # ASE's optimizers ask for free_energy; there is no electronic temperature here, so the two are one.
        self.results = {"energy": value, "free_energy": value, "forces": force}

    def _function_of(self, species: Tensor, positions: Tensor) -> _OfPositions:
        """Energy and forces of the molecule whose species (n,) these are."""
        plain = partial(energy_and_forces, self.model_config, self.params, species)
        if not self._compile:
            return plain
        key = tuple(species.tolist())
        if key not in self._compiled:
            from torch.fx.experimental.proxy_tensor import make_fx

            # Traced for the one molecule, its tables are constants of the graph, which torch.compile takes whole.
            self._compiled[key] = CompiledStep(make_fx(plain)(positions))
        return self._compiled[key]

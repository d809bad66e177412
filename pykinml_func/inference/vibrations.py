"""Harmonic vibrations of a structure.

# E members, n atoms, R ways to move and turn as a whole (6; 5 where it is linear, 3 of an atom), V = 3n - R vibrations
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from ase import Atoms, units
from torch.func import vmap
from torch.utils._pytree import tree_map

from pykinml_func.config import ModelConfig
from pykinml_func.errors import ConfigError, DataError, ModelError
from pykinml_func.inference.calculator import Model, PyKinMLCalculator, ensemble_of
from pykinml_func.inference.checks import checked_species, structure_label
from pykinml_func.potential.forces import energy_and_forces
from pykinml_func.potential.hessian import member_hessians
from pykinml_func.types import Ensemble, Params

if TYPE_CHECKING:
    from ase.vibrations.data import VibrationsData

Geometry = Literal["monatomic", "linear", "nonlinear"]

AT_REST = 0.01
"""eV/Å; where a force is larger, a structure is no stationary point, and its wavenumbers mean little"""

_WHOLE_MOTIONS: dict[Geometry, int] = {"monatomic": 3, "linear": 5, "nonlinear": 6}
_LINEAR = 1e-4
"""Least over largest moment of inertia of a linear structure: a bend by some degrees is more."""

_WAVENUMBER = units._hbar * units.m / math.sqrt(units._e * units._amu) / units.invcm
"""cm^-1 for the root of one eV/Å²/amu"""

_MOST_STEPS = 1000


class Vibrations(NamedTuple):
    """What `vibrations` finds. The potential of several members is their mean, whose Hessian is the mean of theirs."""

    atoms: Atoms
    """the structure, relaxed where that was asked for"""
    geometry: Geometry
    energies: np.ndarray
    """(E,) eV of each member"""
    hessians: np.ndarray
    """(E,n,3,n,3) eV/Å² of each member"""
    wavenumbers: np.ndarray
    """(V,) cm^-1 of the mean potential, ascending; imaginary ones negative"""
    modes: np.ndarray
    """(V,n,3) amu^-1/2: displacements, of length 1 where weighted by the roots of the masses"""
    member_wavenumbers: np.ndarray
    """(E,V) cm^-1 of each member at the same structure"""
    whole_wavenumbers: np.ndarray
    """(R,) cm^-1 that the structure would have as it moves and turns as a whole, which are left out of the
    vibrations: 0 at a stationary point
    """
    largest_force: float
    """eV/Å"""
    steps: int | None
    """of the relaxation; None where it was not asked for"""

    @property
    def data(self) -> VibrationsData:
        """ASE's container of the structure and the mean Hessian, with all 3n modes."""
        from ase.vibrations.data import VibrationsData

        return VibrationsData(self.atoms, self.hessians.mean(axis=0))

    @property
    def n_imaginary(self) -> int:
        """Imaginary modes: none at a minimum, one at a transition state."""
        return int((self.wavenumbers < 0).sum())


def vibrations(model: Model | Sequence[Model], atoms: Atoms, *, relax: bool = False, fmax: float = 1e-6) -> Vibrations:
    """Wavenumbers and normal modes of one structure, by exact Hessians in float64 at the model's highest level.

    model: as PyKinMLCalculator takes it; of several members, each is asked at the structure to which their mean leads.
    relax: go downhill first, until no force is above `fmax` eV/Å. Motions of the whole structure are projected out.
    Raises ConfigError for an `fmax` that cannot be; ModelError as the calculator does, and for a model of delta
    learning; DataError for a structure that cannot be evaluated, that has constraints, or that does not come to rest.
    """
    if not fmax > 0:
        raise ConfigError(f"fmax must be above 0 eV/Å, got {fmax:g}")
    config, members = _members(model)
    _check_free(atoms)
    species = checked_species(config.aev.elements, atoms)
    still, steps = Atoms(atoms.numbers, atoms.positions, masses=atoms.get_masses(), info=atoms.info), None
    if relax:
        steps = _relax(still, config, members, fmax)
    device = members.self_energies.device
    kinds, positions = torch.from_numpy(species).to(device), torch.from_numpy(still.positions).to(device)
    energies, forces = vmap(lambda params: energy_and_forces(config, params, kinds, positions))(members)
    hessians = member_hessians(config, members, kinds, positions).cpu().numpy()
    geometry, whole, inner = _motions(still)
    wavenumbers, modes = _normal_modes(hessians.mean(axis=0), still, inner)
    return Vibrations(
        still,
        geometry,
        energies.cpu().numpy(),
        hessians,
        wavenumbers,
        modes,
        np.stack([_normal_modes(each, still, inner)[0] for each in hessians]),
        _normal_modes(hessians.mean(axis=0), still, whole)[0],
        float(forces.mean(dim=0).norm(dim=1).max()),
        steps,
    )


def _members(model: Model | Sequence[Model]) -> tuple[ModelConfig, Params]:
    """The members' config and stacked parameters, in float64. Raises ModelError."""
    ensemble = ensemble_of(model)
    config = ensemble.model_config
    if config.baseline is not None:
        raise ModelError(
            f"vibrations need a model of an energy, got one of level {config.fidelities[-1]} less level "
            f"{config.baseline}; ase.vibrations.Vibrations takes PyKinMLCalculator(model, low_level=...)"
        )
    members: Params = tree_map(lambda leaf: leaf.detach().double(), ensemble.members)
    return config, members


def _check_free(atoms: Atoms) -> None:
    if atoms.constraints:
        raise DataError(
            f"{structure_label(atoms)} must be free to move, got constraints; remove them: atoms.set_constraint()"
        )


def _relax(atoms: Atoms, config: ModelConfig, members: Params, fmax: float) -> int:
    """Move `atoms` downhill on the mean of the members. Returns the steps. Raises DataError."""
    from ase.optimize import BFGS  # loads other optimizers and formats too

    atoms.calc = PyKinMLCalculator(Ensemble(config, members))
    optimizer = BFGS(atoms, logfile=None)
    converged = optimizer.run(fmax=fmax, steps=_MOST_STEPS)
    largest = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
    atoms.calc = None
    if not converged:
        raise DataError(
            f"{structure_label(atoms)} must come to rest, with no force above {fmax:g} eV/Å, got {largest:.2g} eV/Å "
            f"after {_MOST_STEPS} steps; start nearer to a minimum that the model knows"
        )
    return int(optimizer.nsteps)


def _motions(atoms: Atoms) -> tuple[Geometry, np.ndarray, np.ndarray]:
    """Motions of the whole structure (3n,R) and all others (3n,V), orthonormal where weighted by the masses' roots."""
    moments = atoms.get_moments_of_inertia()
    linear = moments.min() < _LINEAR * moments.max()
    geometry: Geometry = "monatomic" if len(atoms) == 1 else "linear" if linear else "nonlinear"
    axes, roots = np.eye(3), np.sqrt(atoms.get_masses())[:, None]
    from_centre = atoms.positions - atoms.get_center_of_mass()
    shifts = [roots * axis for axis in axes]
    turns = [roots * np.cross(axis, from_centre) for axis in axes]
    # the least of a linear structure's, which is no motion, comes last
    directions = np.linalg.svd(np.stack([motion.ravel() for motion in shifts + turns], axis=1))[0]
    n_whole = _WHOLE_MOTIONS[geometry]
    return geometry, directions[:, :n_whole], directions[:, n_whole:]


def _normal_modes(hessian: np.ndarray, atoms: Atoms, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wavenumbers (V,) cm^-1 and modes (V,n,3) amu^-1/2 of motions along `directions` (3n,V). hessian: (n,3,n,3)."""
    roots = np.sqrt(atoms.get_masses()).repeat(3)
    weighted = hessian.reshape(len(roots), len(roots)) / np.outer(roots, roots)
    squares, vectors = np.linalg.eigh(directions.T @ weighted @ directions)
    modes = (directions @ vectors / roots[:, None]).T.reshape(-1, len(atoms), 3)
    return np.sign(squares) * np.sqrt(np.abs(squares)) * _WAVENUMBER, modes

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
from torch.utils._pytree import tree_map

from pykinml_func.errors import ConfigError, DataError, ModelError
from pykinml_func.inference.calculator import Model, PyKinMLCalculator, ensemble_of
from pykinml_func.inference.checks import checked_species, structure_label
from pykinml_func.potential.hessian import member_hessians
from pykinml_func.types import Ensemble

if TYPE_CHECKING:
    from ase.vibrations.data import VibrationsData

Geometry = Literal["monatomic", "linear", "nonlinear"]

AT_REST = 0.01
"""eV/Å; where a force is larger, a structure is no stationary point, and its wavenumbers mean little"""

ZERO = 1.0
"""cm^-1: modes that nothing holds, as of fragments that are apart, are within this of zero, on either side, by rounding
and by the forces that a relaxation leaves.
"""

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
    """(E,V) cm^-1 of each member at the same structure: of its mode that is most like that of the mean"""
    whole_wavenumbers: np.ndarray
    """(R,) cm^-1 that the structure would have as it moves and turns as a whole, which are left out of the
    vibrations: 0 at a stationary point
    """
    largest_force: float
    """eV/Å"""
    steps: int | None
    """of the relaxation; None where it was not asked for"""
    extrapolation: float
    """of the structure: above 1 it lies beyond what the model was trained on; NaN where that is not known"""

    @property
    def data(self) -> VibrationsData:
        """ASE's container of the structure and the mean Hessian, with all 3n modes."""
        from ase.vibrations.data import VibrationsData

        return VibrationsData(self.atoms, self.hessians.mean(axis=0))

    @property
    def n_imaginary(self) -> int:
        """Imaginary modes: none at a minimum, one at a transition state."""
        return int((self.wavenumbers < -ZERO).sum())

    @property
    def n_zero(self) -> int:
        """Vibrations that nothing holds: some where fragments are apart, none of one molecule."""
        return int((np.abs(self.wavenumbers) <= ZERO).sum())


def vibrations(
    model: Model | Sequence[Model],
    atoms: Atoms,
    *,
    relax: bool = False,
    fmax: float = 1e-6,
    low_level: Model | Sequence[Model] | None = None,
) -> Vibrations:
    """Wavenumbers and normal modes of one structure, by exact Hessians in float64 at the model's highest level.

    model: as PyKinMLCalculator takes it; of several members, each is asked at the structure to which their mean leads.
    relax: go downhill first, until no force is above `fmax` eV/Å. low_level: the model, or mean of several, to which
    one of delta learning is added. Motions of the whole structure are projected out. Raises ConfigError for an `fmax`
    that cannot be; ModelError as the calculator does, and for a low level that is missing or another; DataError for a
    structure that cannot be evaluated, that has constraints, or that does not come to rest.
    """
    if not fmax > 0:
        raise ConfigError(f"fmax must be above 0 eV/Å, got {fmax:g}")
    potential = _potential(model, low_level)
    _check_free(atoms)
    species = checked_species(potential.model_config.aev.elements, atoms)  # before the cell is left out
    still, steps = Atoms(atoms.numbers, atoms.positions, masses=atoms.get_masses(), info=atoms.info), None
    if relax:
        steps = _relax(still, potential, fmax)
    forces = potential.get_property("forces", still)
    hessians = _hessians(potential, species, still)
    geometry, whole, inner = _motions(still)
    wavenumbers, modes = _normal_modes(hessians.mean(axis=0), still, inner)
    return Vibrations(
        still,
        geometry,
        potential.results["all_energies"],
        hessians,
        wavenumbers,
        modes,
        np.stack([_by_mode(modes, still, *_normal_modes(each, still, inner)) for each in hessians]),
        _normal_modes(hessians.mean(axis=0), still, whole)[0],
        float(np.linalg.norm(forces, axis=1).max()),
        steps,
        potential.results.get("extrapolation", math.nan),
    )


def _potential(model: Model | Sequence[Model], low_level: Model | Sequence[Model] | None) -> PyKinMLCalculator:
    """In float64, the low level too. Raises ModelError."""
    ensemble = _in_float64(model)
    config = ensemble.model_config
    if low_level is None and config.baseline is not None:
        raise ModelError(
            f"vibrations need a model of an energy, got one of level {config.fidelities[-1]} less level "
            f"{config.baseline}; give a model of level {config.baseline} as low_level, or PyKinMLCalculator(model, "
            "low_level=...) to ase.vibrations.Vibrations"
        )
    if low_level is None:
        return PyKinMLCalculator(ensemble)
    low = PyKinMLCalculator(_in_float64(low_level))
    potential, theirs = PyKinMLCalculator(ensemble, low_level=low), low.model_config
    if theirs.baseline is not None or theirs.fidelities[-1] != config.baseline:
        kind = "a difference of levels" if theirs.baseline is not None else f"level {theirs.fidelities[-1]}"
        raise ModelError(f"low_level must be a model of level {config.baseline}, got one of {kind}; give that level's")
    return potential


def _in_float64(model: Model | Sequence[Model]) -> Ensemble:
    ensemble = ensemble_of(model)
    return ensemble._replace(members=tree_map(lambda leaf: leaf.detach().double(), ensemble.members))


def _hessians(potential: PyKinMLCalculator, species: np.ndarray, atoms: Atoms) -> np.ndarray:
    """(E,n,3,n,3) eV/Å² of each member, with that of the low level. species: (n,) indices into the elements."""
    device = potential.members.self_energies.device
    kinds, positions = (torch.from_numpy(each).to(device) for each in (species, atoms.positions))
    found: np.ndarray = member_hessians(potential.model_config, potential.members, kinds, positions).cpu().numpy()
    if isinstance(low := potential.low_level, PyKinMLCalculator):
        found += low.get_hessian(atoms).reshape(found.shape[1:])
    return found


def _check_free(atoms: Atoms) -> None:
    if atoms.constraints:
        raise DataError(
            f"{structure_label(atoms)} must be free to move, got constraints; remove them: atoms.set_constraint()"
        )


def _relax(atoms: Atoms, potential: PyKinMLCalculator, fmax: float) -> int:
    """Move `atoms` downhill. Returns the steps. Raises DataError."""
    from ase.optimize import BFGS  # loads other optimizers and formats too

    atoms.calc = potential
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


def _by_mode(modes: np.ndarray, atoms: Atoms, wavenumbers: np.ndarray, own: np.ndarray) -> np.ndarray:
    """A member's wavenumbers (V,) in the order of the mean's modes, each that of the member's most alike.

    modes, own: (V,n,3) amu^-1/2, of the mean and of the member, which are matched one to one by their squared overlaps.
    """
    from scipy.optimize import linear_sum_assignment

    overlaps = np.einsum("vna,n,wna->vw", modes, atoms.get_masses(), own)
    matched: np.ndarray = wavenumbers[linear_sum_assignment(overlaps**2, maximize=True)[1]]
    return matched

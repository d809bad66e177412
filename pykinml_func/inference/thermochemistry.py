"""Thermochemistry of a structure as an ideal gas of rigid rotors and harmonic vibrations.

# E members, V vibrations
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from ase import units

from pykinml_func.errors import ConfigError, DataError
from pykinml_func.inference.checks import structure_label
from pykinml_func.inference.vibrations import ZERO, Vibrations

_LEAST, _MOST = 1e-30, 1e12
"""K and Pa between which no partition function is lost to rounding."""


class Conditions(NamedTuple):
    """What the thermochemistry of an ideal gas depends on, its molecule aside."""

    temperature: float = 298.15
    """K"""
    pressure: float = 101325.0
    """Pa"""
    symmetry: int = 1
    """the number of rotations that leave the molecule as it is: 2 for H2O, 12 for CH4"""
    spin: float = 0.0
    """half the number of unpaired electrons"""


class Thermochemistry(NamedTuple):
    """Energies in eV, the entropy in eV/K; the electronic energy is part of enthalpy and Gibbs energy."""

    zero_point_energy: float
    enthalpy: float
    entropy: float
    gibbs_energy: float


class EnsembleThermochemistry(NamedTuple):
    """What `thermochemistry` finds."""

    of_mean: Thermochemistry
    """of the mean potential"""
    members: tuple[Thermochemistry, ...]
    """of each member at the same structure; () where one of them has another number of imaginary modes there, or a
    vibration of zero
    """

    @property
    def spread(self) -> Thermochemistry | None:
        """Standard deviations over the members; None where there are none to compare."""
        if len(self.members) < 2:
            return None
        return Thermochemistry(*np.std(self.members, axis=0, ddof=1).tolist())


def thermochemistry(found: Vibrations, conditions: Conditions | None = None) -> EnsembleThermochemistry:
    """Zero-point energy, enthalpy, entropy and Gibbs energy as ASE's IdealGasThermo has them: an ideal gas of rigid
    rotors and harmonic vibrations. A transition state's imaginary mode is left out.

    Raises ConfigError for conditions that cannot be, DataError for a structure that is no molecule or transition state.
    """
    conditions = conditions or Conditions()
    check_conditions(conditions)
    if why := why_not(found):
        raise DataError(f"thermochemistry of {structure_label(found.atoms)} {why}")
    of_mean = _ideal_gas(found, float(found.energies.mean()), found.wavenumbers, conditions)
    of_members = found.member_wavenumbers
    if ((of_members < 0).sum(axis=1) != found.n_imaginary).any() or (np.abs(of_members) <= ZERO).any():
        return EnsembleThermochemistry(of_mean, ())
    each = zip(found.energies, found.member_wavenumbers, strict=True)
    members = tuple(_ideal_gas(found, float(energy), own, conditions) for energy, own in each)
    return EnsembleThermochemistry(of_mean, members)


def why_not(found: Vibrations) -> str | None:
    """What keeps a structure from having thermochemistry, and the way out; None where nothing does."""
    if found.n_zero:
        return (
            f"needs one molecule, got {found.n_zero} of {len(found.modes)} vibrations within {ZERO:g} cm^-1 of zero, "
            "as fragments that are apart have; compute each alone"
        )
    if found.n_imaginary > 1:
        return (
            "needs a minimum or a transition state, with one imaginary mode at most, got "
            f"{found.n_imaginary}; relax it, or take a structure that was"
        )
    return None


def check_conditions(conditions: Conditions) -> None:
    """Raises ConfigError for conditions that cannot be."""
    temperature, pressure, symmetry, spin = conditions
    for name, value, unit in (("temperature", temperature, "K"), ("pressure", pressure, "Pa")):
        if not _LEAST <= value <= _MOST:
            raise ConfigError(f"{name} must be between {_LEAST:g} and {_MOST:g} {unit}, got {value:g}")
    if symmetry < 1:
        raise ConfigError(f"symmetry must be a symmetry number of 1 or more, got {symmetry}")
    if spin < 0 or not float(2 * spin).is_integer():
        raise ConfigError(f"spin must be half the number of unpaired electrons (0, 0.5, 1, ...), got {spin:g}")


def _ideal_gas(found: Vibrations, energy: float, wavenumbers: np.ndarray, conditions: Conditions) -> Thermochemistry:
    """wavenumbers: (V,) cm^-1."""
    from ase.thermochemistry import IdealGasThermo

    temperature, pressure, symmetry, spin = conditions
    signed = wavenumbers * units.invcm
    energies = np.where(signed < 0, 1j * np.abs(signed), signed).tolist()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*imag modes removed")  # as meant
        gas = IdealGasThermo(
            energies,
            found.geometry,
            potentialenergy=energy,
            atoms=found.atoms,
            symmetrynumber=symmetry,
            spin=spin,
            ignore_imag_modes=True,
        )
    with np.errstate(over="ignore"):  # of a mode that is too stiff to be excited, as it should be
        enthalpy = gas.get_enthalpy(temperature, verbose=False)
        entropy = gas.get_entropy(temperature, pressure, verbose=False)
    zero_point_energy = float(signed[signed > 0].sum()) / 2
    return Thermochemistry(zero_point_energy, float(enthalpy), float(entropy), float(enthalpy - temperature * entropy))

"""The low level that a model of delta learning is added to: energies and forces of an ASE calculator.

# M structures, n atoms of one structure
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError

from pykinml_func.config import ModelConfig
from pykinml_func.data.formats.sources import read_structures
from pykinml_func.errors import ConfigError, DataError, ModelError
from pykinml_func.inference.checks import structure_label

LowLevel = Calculator | Literal["attached"]
"""An ASE calculator, or the results that each structure carries already (`Atoms.calc`)."""


def check_low_level(model_config: ModelConfig, low_level: LowLevel | None) -> None:
    """Raises ModelError where a low level is given to a model that is not of delta learning, ConfigError for one that
    is neither a calculator nor `attached`.
    """
    if low_level is not None and model_config.baseline is None:
        raise ModelError(
            f"low_level needs a model of delta learning, got one of level {model_config.fidelities[-1]} itself; leave "
            "low_level out"
        )
    if low_level is not None and low_level != "attached":
        check_calculator(low_level)


def check_calculator(low_level: object) -> None:
    """Raises ConfigError for a low level that is no ASE calculator."""
    if not hasattr(low_level, "get_property"):
        raise ConfigError(
            f"low_level must be an ASE calculator, got {low_level!r}; give PyKinMLCalculator(FILE) for a model file "
            "(only Predictor.predict takes 'attached', results that structures carry)"
        )


def read_low_level(paths: Sequence[Path], level: int, model_config: ModelConfig) -> list[Atoms]:
    """The structures of files with the energies and forces that the files have at the low level, `attached` to each.

    Raises ModelError where the model is not relative to `level`, DataError where a structure has no energy there.
    """
    if level != model_config.baseline:
        raise ModelError(f"low_level must be the model's, {model_config.baseline}, got {level}; give that level")
    images, every = read_structures(paths, level), read_structures(paths)
    if len(images) < len(every):
        raise DataError(
            f"every structure must have an energy at level {level}, and {len(every) - len(images)} of {len(every)} "
            "have none; leave them out, or give a model file as the low level"
        )
    return images


def low_level_results(
    images: Sequence[Atoms], low_level: LowLevel, forces: bool
) -> tuple[np.ndarray, list[np.ndarray | None]]:
    """Energies (M,) eV and, where `forces` is set, forces (n,3) eV/Å of each image at the low level.

    Raises DataError for a structure whose low level is not known.
    """
    found = [low_level_result(image, low_level, forces, structure_label(image, m)) for m, image in enumerate(images)]
    return np.array([energy for energy, _ in found]), [force for _, force in found]


def low_level_result(image: Atoms, low_level: LowLevel, forces: bool, label: str) -> tuple[float, np.ndarray | None]:
    """As `low_level_results`, of one image. label: what error messages call it."""
    calculator = image.calc if low_level == "attached" else low_level
    wanted = "energy and forces" if forces else "energy"
    if calculator is None:
        raise DataError(f"{label} must carry {wanted} of the low level, got none; give a calculator in its place")
    try:
        energy = calculator.get_property("energy", image)
        force = calculator.get_property("forces", image) if forces else None
    except PropertyNotImplementedError as error:
        raise DataError(
            f"{label} must have {wanted} of the low level, for the positions that it has now, and its calculator says: "
            f"{error}"
        ) from None
    if not (np.isfinite(energy) and (force is None or np.isfinite(force).all())):
        raise DataError(f"{label} must have finite {wanted} of the low level, got {energy} eV; leave it out")
    return float(energy), force

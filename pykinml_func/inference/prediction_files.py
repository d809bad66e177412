"""Predictions as a file: extended XYZ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from pykinml_func.data.formats.ase_files import SOURCE
from pykinml_func.errors import DataError
from pykinml_func.files import write_atomically
from pykinml_func.inference.predictor import Prediction


def check_output(path: Path) -> None:
    """Raises DataError for a name that ASE, which goes by names, would read as another format than extended XYZ."""
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    try:
        taken_for = filetype(path.name, read=False)
    except UnknownFileTypeError:
        return
    if taken_for != "extxyz" and taken_for in ioformats:
        raise DataError(
            f"output must be extended XYZ, got {path}, which ASE would read as {taken_for}; name it .extxyz or .xyz"
        )


def bare_copy(atoms: Atoms) -> Atoms:
    """A copy to be written, without its calculator, and without where it was read, which is for our messages alone."""
    frame = atoms.copy()
    frame.info.pop(SOURCE, None)
    return frame


def write_predictions(path: str | Path, images: Sequence[Atoms], predictions: Sequence[Prediction]) -> None:
    """Write extended XYZ, whole or not at all, whose energies (eV) and forces (eV/Å) are the predictions.

    `ase.io.read(path, index=":")[m].get_potential_energy()` is then that of image m. Levels below the highest are in
    `info["energy_0"]` and `arrays["forces_0"]`, named by level; a difference is in `energy_difference` and
    `forces_difference`. What is known of how far to trust them is in `info["energy_std"]`, `arrays["forces_std"]`,
    `info["extrapolation"]` and `info["is_extrapolated"]`. Raises DataError where `path` cannot be written, or has the
    suffix of another format.
    """
    import ase.io

    path = Path(path)
    check_output(path)
    frames = [_frame(atoms, prediction) for atoms, prediction in zip(images, predictions, strict=True)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: ase.io.write(temporary, frames, format="extxyz"))
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from None


def _frame(atoms: Atoms, prediction: Prediction) -> Atoms:
    frame = bare_copy(atoms)
    frame.info.pop("energy", None)  # ASE refuses to write a value of the same name twice
    frame.arrays.pop("forces", None)
    named = [f"_{level}" for level in prediction.fidelities[:-1]]
    if prediction.is_difference:
        named.append("_difference")
    else:
        frame.calc = SinglePointCalculator(frame, energy=prediction.energy, forces=prediction.forces)
    for column, suffix in enumerate(named):
        frame.info[f"energy{suffix}"] = float(prediction.level_energies[column])
        frame.arrays.pop(f"forces{suffix}", None)  # of another energy
        if prediction.level_forces is not None:
            frame.arrays[f"forces{suffix}"] = prediction.level_forces[column]
    _add_uncertainty(frame, prediction)
    return frame


def _add_uncertainty(frame: Atoms, prediction: Prediction) -> None:
    """Put what is known of it into a frame, in place of what another model may have said."""
    for name in ("energy_std", "extrapolation", "is_extrapolated"):
        frame.info.pop(name, None)
    frame.arrays.pop("forces_std", None)
    if prediction.energy_std is not None:
        frame.info["energy_std"] = prediction.energy_std
    if prediction.forces_std is not None:
        frame.arrays["forces_std"] = prediction.forces_std
    if not math.isnan(prediction.extrapolation):
        frame.info["extrapolation"] = prediction.extrapolation
        frame.info["is_extrapolated"] = prediction.is_extrapolated

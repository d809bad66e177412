"""How far a model's predictions are from labels, and whether what it says of that itself is right.

# M structures, L fidelity levels of the model, A atoms in all of them, k labels
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms

from pykinml_func.config import ModelConfig
from pykinml_func.data.formats.ase_files import SOURCE
from pykinml_func.data.formats.blocks import collect
from pykinml_func.data.formats.rows import Query
from pykinml_func.data.formats.sources import FORMATS, contents, find_inputs, input_format
from pykinml_func.data.labels import has_forces
from pykinml_func.data.splits import read_split_files
from pykinml_func.errors import DataError
from pykinml_func.inference.predictor import Prediction, Predictor
from pykinml_func.training.calibration import AGREED, student_scale
from pykinml_func.types import Structures
from pykinml_func.units import KCAL_PER_MOL

_TEST = -1
"""The mark of split files."""

_MOST_BINS, _LEAST_IN_BIN = 10, 5


class Errors(NamedTuple):
    """Of energies in kcal/mol, or of force components in kcal/mol/Å; NaN over no label."""

    n_structures: int
    mae: float
    rmse: float
    max: float


class LevelErrors(NamedTuple):
    """Of one fidelity level, or in delta learning of the difference to the level below."""

    level: int
    energy: Errors
    force: Errors | None
    """None where no structure has forces"""


class Bin(NamedTuple):
    """Labels of like standard deviations; kcal/mol or kcal/mol/Å."""

    number: int
    std: float
    """root mean square of the standard deviations"""
    rmse: float
    """root mean square of the errors, equal to `std` where that is right"""


class CalibrationTable(NamedTuple):
    """Errors at the highest level beside the standard deviations that the ensemble gave; energies, or components of
    forces where members differ at all.
    """

    number: int
    scale: float
    """typical error over standard deviation (`student_scale`): 1 where calibrated, above where it is too small"""
    within: tuple[float, float]
    """share of the errors within one and within two standard deviations"""
    expected: tuple[float, float]
    """the same of Gaussian errors whose standard deviation so many members estimate: less than 0.683 and 0.954 of one
    that is known, since it comes out small by chance
    """
    bins: tuple[Bin, ...]
    """of equal numbers, by standard deviation"""
    calibrated: bool = False
    """whether the standard deviations are those of the members times the factor that the model file holds"""


class Beyond(NamedTuple):
    """Errors at the highest level of the structures beyond the training data (`Prediction.is_extrapolated`), and of all
    others.
    """

    number: int
    energy: Errors
    energy_others: Errors
    force: Errors | None
    force_others: Errors | None


class Evaluation(NamedTuple):
    """All that labels say of a model."""

    n_structures: int
    n_members: int
    baseline: int | None
    """the level that a model of delta learning adds to"""
    levels: tuple[LevelErrors, ...]
    """those of the model that have labels, lowest first"""
    energy_calibration: CalibrationTable | None
    """None for one member, and without labels of the highest level"""
    force_calibration: CalibrationTable | None
    beyond: Beyond | None
    """None where the model does not know what it was trained on"""


def read_labels(model_config: ModelConfig, paths: Sequence[Path], split_files: Sequence[Path] = ()) -> Structures:
    """The structures of files of any format that have an energy at a level of the model, with its levels alone; in
    delta learning those that have both, with the difference.

    split_files: only the structures that these mark as test structures. Raises DataError where there is none.
    """
    files = find_inputs([str(path) for path in paths])
    ids = _test_ids(split_files) if split_files else None
    baseline, levels = model_config.baseline, model_config.fidelities
    query = Query(levels if baseline is None else (baseline, *levels), ids=ids)
    formats = {path: input_format(path) for path in files}
    blocks = chain.from_iterable(FORMATS[form].read(path, query) for path, form in formats.items())
    holds = contents(formats, query)
    found = collect(blocks, query, files, holds)
    there = found.levels.tolist()
    columns = [there.index(level) for level in levels]
    energies, forces = found.energies[:, columns], found.forces[:, columns]
    if baseline is not None:
        below = there.index(baseline)
        energies, forces = energies - found.energies[:, [below]], forces - found.forces[:, [below]]
    labelled = np.flatnonzero(np.isfinite(energies).any(axis=1))
    if len(labelled) == 0:
        raise DataError(
            f"a model of delta learning is compared where structures have energies at both levels {baseline} and "
            f"{levels[-1]}, got none; the files hold {'; '.join(map(holds, files))}"
        )
    return found._replace(levels=np.array(levels), energies=energies, forces=forces).take(labelled)


def _test_ids(split_files: Sequence[Path]) -> set[str]:
    marks = read_split_files(split_files)
    ids = {name for name, mark in marks.items() if mark == _TEST}
    if not ids:
        raise DataError(
            f"split files must mark structures to evaluate on with -1, got {len(marks)} marked 2 alone in "
            f"{', '.join(map(str, split_files))}; leave split_files out to take all"
        )
    return ids


def evaluate(predictor: Predictor, labels: Structures) -> Evaluation:
    """The errors of a model. labels: of `read_labels`. Raises ModelError for elements that the model does not know."""
    found = compared(labels, predictions_of(predictor, labels), predictor.model_config.baseline)
    if (calibration := predictor.ensemble.calibration) is None:
        return found
    tables = found.energy_calibration, found.force_calibration
    known = [
        None if table is None else table._replace(calibrated=bool(scale[-1].isfinite()))
        for table, scale in zip(tables, calibration[:2], strict=True)
    ]
    return found._replace(energy_calibration=known[0], force_calibration=known[1])


def predictions_of(predictor: Predictor, labels: Structures) -> list[Prediction]:
    """What a model says of labelled structures, of forces too where any of them has some. Raises as `evaluate`."""
    bounds = zip(labels.ids.tolist(), labels.offsets[:-1], labels.offsets[1:], strict=True)
    images = [Atoms(labels.numbers[a:b], labels.positions[a:b], info={SOURCE: name}) for name, a, b in bounds]
    return predictor.predict(images, forces=bool(has_forces(labels).any()))


def compared(labels: Structures, predictions: Sequence[Prediction], baseline: int | None = None) -> Evaluation:
    """The errors of predictions of the same structures. baseline: of a model of delta learning."""
    n_members = len(predictions[0].member_energies)
    energies = np.stack([prediction.level_energies for prediction in predictions]) - labels.energies
    forces = _force_errors(labels, predictions)
    levels = [
        LevelErrors(int(level), _errors(energies[:, [column]]), _of_forces(forces, column))
        for column, level in enumerate(labels.levels)
        if np.isfinite(energies[:, column]).any()
    ]
    tables: list[CalibrationTable | None] = [None, None]
    if n_members > 1:
        stds = np.array([prediction.energy_std for prediction in predictions], dtype=float)
        tables[0] = calibration_table(energies[:, -1], stds, n_members)
        if forces is not None:
            by_atom = np.concatenate([np.asarray(prediction.forces_std) for prediction in predictions])
            tables[1] = calibration_table(np.concatenate(forces)[:, -1], by_atom, n_members)
    number, beyond = len(predictions), _beyond(predictions, energies, forces)
    return Evaluation(number, n_members, baseline, tuple(levels), tables[0], tables[1], beyond)


def calibration_table(errors: np.ndarray, stds: np.ndarray, n_members: int) -> CalibrationTable | None:
    """errors: (k,...), NaN where there is no label; stds: of the same shape; eV or eV/Å. Returns None for no label."""
    counted = np.isfinite(errors) & (stds > AGREED)
    order = np.argsort(stds[counted], kind="stable")
    errors, stds = np.abs(errors[counted])[order], stds[counted][order]
    number, freedom = len(errors), n_members - 1
    if number == 0:
        return None
    parts = np.array_split(np.arange(number), max(1, min(_MOST_BINS, number // _LEAST_IN_BIN)))
    bins = [
        Bin(len(part), *(KCAL_PER_MOL * _root_mean_square(each[part]) for each in (stds, errors))) for part in parts
    ]
    within = [float((errors <= k * stds).mean()) for k in (1, 2)]
    scale = student_scale(torch.from_numpy((errors / stds) ** 2), freedom)
    return CalibrationTable(number, scale, (within[0], within[1]), expected_within(n_members), tuple(bins))


def expected_within(n_members: int) -> tuple[float, float]:
    """Shares of Student's t distribution within one and within two: `CalibrationTable.expected`."""
    from scipy.special import stdtr

    one, two = (float(1 - 2 * stdtr(n_members - 1, -k)) for k in (1, 2))
    return one, two


def _force_errors(labels: Structures, predictions: Sequence[Prediction]) -> list[np.ndarray] | None:
    """(n,L,3) eV/Å of each structure, NaN where it lacks forces of a level; None where none has any."""
    there = has_forces(labels)
    if not there.any():
        return None
    errors = []
    for m, prediction in enumerate(predictions):
        own = slice(labels.offsets[m], labels.offsets[m + 1])
        found = np.asarray(prediction.level_forces).swapaxes(0, 1) - labels.forces[own]
        errors.append(np.where(there[m][:, None], found, np.nan))
    return errors


def _beyond(predictions: Sequence[Prediction], energies: np.ndarray, forces: list[np.ndarray] | None) -> Beyond | None:
    """energies: (M,L) eV of errors; forces: of `_force_errors`."""
    extrapolation = np.array([prediction.extrapolation for prediction in predictions])
    if np.isnan(extrapolation).all():
        return None
    parts = [np.flatnonzero(each) for each in (extrapolation > 1, extrapolation <= 1)]
    energy = [_errors(energies[part][:, [-1]]) for part in parts]
    force = [None if forces is None else _of_forces([forces[m] for m in part], -1) for part in parts]
    return Beyond(len(parts[0]), *energy, *force)


def _of_forces(forces: list[np.ndarray] | None, column: int) -> Errors | None:
    """Of the components of one level; None where no structure has them."""
    found = [] if forces is None else [each[:, column] for each in forces if np.isfinite(each[:, column]).all()]
    return _errors(np.concatenate(found), len(found)) if found else None


def _errors(errors: np.ndarray, n_structures: int | None = None) -> Errors:
    """errors: eV or eV/Å, NaN where there is no label; n_structures: default, as many as there are labels."""
    errors = np.abs(errors[np.isfinite(errors)])
    number = len(errors) if n_structures is None else n_structures
    if len(errors) == 0:
        return Errors(number, np.nan, np.nan, np.nan)
    values = errors.mean(), _root_mean_square(errors), errors.max()
    return Errors(number, *(float(KCAL_PER_MOL * value) for value in values))


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))

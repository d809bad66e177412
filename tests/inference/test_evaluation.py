"""Errors, calibration tables and structures beyond the data of predictions that are made up; labels of files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.data.formats.database import write_database
from pykinml_func.data.splits import Split, write_split
from pykinml_func.errors import DataError, ModelError
from pykinml_func.inference.evaluation import (
    calibration_table,
    compared,
    evaluate,
    expected_within,
    read_labels,
)
from pykinml_func.inference.predictor import Prediction, Predictor
from pykinml_func.potential.energy import init_params
from pykinml_func.potential.ensemble import stack_members
from pykinml_func.types import Calibration, Ensemble, Structures

KCAL = 23.060548
N = 40


def predicted(labels: Structures, energies: np.ndarray, forces: np.ndarray, **more: Any) -> list[Prediction]:
    """Labels with errors added, of one member. energies: (M,L), forces: (A,L,3); more: lists of further fields."""
    found = []
    for m in range(labels.n_structures):
        own = slice(labels.offsets[m], labels.offsets[m + 1])
        energy = np.nan_to_num(labels.energies[m]) + energies[m]
        force = (np.nan_to_num(labels.forces[own]) + forces[own]).swapaxes(0, 1)
        fields = {name: values[m] for name, values in more.items()}
        found.append(Prediction((0, 1), False, energy, force, energy[None], force[None])._replace(**fields))
    return found


@pytest.fixture
def labels(make_structures: Callable[..., Structures]) -> Structures:
    return make_structures(["CH4", "C2H2"] * (N // 2), seed=8, levels=(0, 1))


def drawn(labels: Structures, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(0, 0.1, labels.energies.shape), generator.normal(0, 0.3, labels.forces.shape)


def figures(errors: np.ndarray) -> list[float]:
    return [KCAL * float(value) for value in (np.abs(errors).mean(), np.sqrt((errors**2).mean()), np.abs(errors).max())]


def test_errors_by_level_are_of_what_is_labelled(labels: Structures):
    energies, forces = drawn(labels)
    labels.energies[3:7, 0] = np.nan
    labels.forces[: labels.offsets[5], 1] = np.nan
    labels.forces[labels.offsets[7], 1] = np.nan  # one atom: the structure has no forces
    found = compared(labels, predicted(labels, energies, forces))
    assert (found.n_structures, found.n_members, [each.level for each in found.levels]) == (N, 1, [0, 1])
    low, high = found.levels
    assert low.energy.n_structures == N - 4 and high.energy.n_structures == N
    assert list(low.energy[1:]) == pytest.approx(figures(np.delete(energies[:, 0], range(3, 7))), rel=1e-6)
    assert list(high.energy[1:]) == pytest.approx(figures(energies[:, 1]), rel=1e-6)
    assert low.force is not None and high.force is not None
    assert low.force.n_structures == N and high.force.n_structures == N - 6
    assert list(low.force[1:]) == pytest.approx(figures(forces[:, 0]), rel=1e-6)
    left_out = [*range(labels.offsets[5]), *range(labels.offsets[7], labels.offsets[8])]
    assert list(high.force[1:]) == pytest.approx(figures(np.delete(forces[:, 1], left_out, axis=0)), rel=1e-6)
    assert found.energy_calibration is None and found.force_calibration is None and found.beyond is None


def test_levels_and_forces_without_labels_are_left_out(labels: Structures):
    labels.energies[:, 1] = labels.forces[:] = np.nan
    found = compared(labels, predicted(labels, *drawn(labels)))
    assert [(each.level, each.force) for each in found.levels] == [(0, None)]


def test_calibrated_predictions_have_equal_columns():
    """Bins of equal numbers, ordered; of each, the roots of the mean squares agree."""
    generator = np.random.default_rng(3)
    stds = 10 ** generator.uniform(-2, 0, 10_000)
    found = calibration_table(stds * generator.standard_normal(10_000), stds, 10**6)
    assert found is not None
    assert found.scale == pytest.approx(1, rel=0.03)
    assert found.within == pytest.approx((0.683, 0.954), abs=0.015)
    assert [each.number for each in found.bins] == [1000] * 10
    assert [each.std for each in found.bins] == sorted(each.std for each in found.bins)
    for k, each in enumerate(found.bins):
        own = np.sort(stds)[1000 * k : 1000 * (k + 1)]
        assert each.std == pytest.approx(KCAL * np.sqrt((own**2).mean()), rel=1e-6)
        assert each.rmse == pytest.approx(each.std, rel=0.1)


def test_a_table_by_hand():
    """Three times too small; what has no label, or no spread, is left out."""
    stds = np.array([0.4, 0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1e-17, 0.5])
    errors = 3 * stds
    errors[[0, 1]], errors[10], errors[11] = 0.5 * stds[[0, 1]], 1e-9, np.nan
    found = calibration_table(errors, stds, 4)
    assert found is not None
    assert (found.number, found.within) == (10, (0.2, 0.2))
    first, second = found.bins
    assert (first.number, second.number) == (5, 5)
    assert first.std == pytest.approx(KCAL * np.sqrt(0.55 / 5), rel=1e-6)
    assert first.rmse == pytest.approx(KCAL * np.sqrt((0.2**2 + 0.05**2 + 0.6**2 + 0.9**2 + 1.5**2) / 5), rel=1e-6)
    assert second.rmse == pytest.approx(3 * second.std, rel=1e-9)
    assert calibration_table(np.full(3, np.nan), np.ones(3), 4) is None


def test_few_members_estimate_a_standard_deviation_roughly():
    generator = np.random.default_rng(4)
    for n_members in (2, 4, 8):
        errors, members = generator.standard_normal(100_000), generator.standard_normal((n_members, 100_000))
        found = calibration_table(errors, members.std(axis=0, ddof=1), n_members)
        assert found is not None
        assert found.within == pytest.approx(expected_within(n_members), abs=0.005)
        assert found.scale == pytest.approx(1, abs=0.02)
    assert expected_within(10**6) == pytest.approx((0.6827, 0.9545), abs=1e-4)


def test_an_ensemble_is_calibrated_at_the_highest_level(labels: Structures):
    energies, forces = drawn(labels)
    stds = np.full(N, 0.05)
    by_atom = [np.full((size, 3), 0.1) for size in labels.sizes]
    two = [np.zeros((2, 2))] * N
    found = compared(
        labels, predicted(labels, energies, forces, energy_std=stds, forces_std=by_atom, member_energies=two)
    )
    assert found.energy_calibration is not None and found.force_calibration is not None
    assert found.n_members == 2
    assert found.energy_calibration.within[0] == pytest.approx((np.abs(energies[:, 1]) <= 0.05).mean())
    assert found.force_calibration.within[1] == pytest.approx((np.abs(forces[:, 1]) <= 0.2).mean())
    assert found.force_calibration.number == forces[:, 1].size
    labels.forces[: labels.offsets[5], 1] = np.nan
    labels.forces[labels.offsets[7], 1] = np.nan  # one atom: none of the structure's forces count
    fewer = compared(
        labels, predicted(labels, energies, forces, energy_std=stds, forces_std=by_atom, member_energies=two)
    )
    assert fewer.force_calibration is not None
    assert fewer.force_calibration.number == 3 * (len(forces) - labels.offsets[5] - labels.sizes[7])


def test_errors_beyond_the_data_stand_beside_those_of_the_others(labels: Structures):
    energies, forces = drawn(labels)
    far = np.arange(N) % 10 == 3
    predictions = predicted(
        labels, energies, forces, distance=np.where(far, 1.5, 1.0).tolist()
    )  # 1 is the farthest there
    found = compared(labels, predictions).beyond
    assert found is not None and found.number == 4
    assert list(found.energy[1:]) == pytest.approx(figures(energies[far, 1]), rel=1e-6)
    assert list(found.energy_others[1:]) == pytest.approx(figures(energies[~far, 1]), rel=1e-6)
    owner = np.repeat(far, labels.sizes)
    assert found.force is not None and found.force_others is not None
    assert list(found.force[1:]) == pytest.approx(figures(forces[owner, 1]), rel=1e-6)
    assert list(found.force_others[1:]) == pytest.approx(figures(forces[~owner, 1]), rel=1e-6)
    none = compared(labels, predicted(labels, energies, forces, distance=[0.5] * N)).beyond
    assert none is not None and (none.number, none.energy.n_structures, none.force) == (0, 0, None)
    assert math.isnan(none.energy.mae)


AEV = AEVConfig(elements=("C", "H"), n_radial=4, n_angular_radial=2, n_angular=2)


def config_of(**levels: Any) -> ModelConfig:
    return ModelConfig(aev=AEV, neurons=(5, 1), activations=("tanh", "identity"), **levels)


@pytest.fixture
def database(labels: Structures, tmp_path: Path) -> Path:
    """CH4.db with levels 0 and 1; the first lacks level 1, the second level 0."""
    found = labels.take(np.arange(0, N, 2))
    found.energies[0, 1] = found.energies[1, 0] = np.nan
    write_database(tmp_path / "CH4.db", found, {0: "made up", 1: "made up"})
    return tmp_path / "CH4.db"


def test_labels_are_those_of_the_model_s_levels(labels: Structures, database: Path):
    whole = labels.take(np.arange(0, N, 2))
    high = read_labels(config_of(fidelities=(1,)), [database])
    np.testing.assert_array_equal(high.energies, np.delete(whole.energies[:, [1]], 0, axis=0))
    assert high.levels.tolist() == [1] and high.ids[0] == "CH4/2"
    turned = read_labels(config_of(fidelities=(1, 0)), [database])
    assert turned.levels.tolist() == [1, 0] and turned.n_structures == N // 2
    np.testing.assert_array_equal(turned.energies[2:], whole.energies[2:, ::-1])
    np.testing.assert_array_equal(turned.forces[10:], whole.forces[10:, ::-1])
    delta = read_labels(config_of(fidelities=(1,), baseline=0), [database])
    np.testing.assert_allclose(delta.energies[:, 0], (whole.energies[:, 1] - whole.energies[:, 0])[2:], rtol=1e-14)
    np.testing.assert_allclose(delta.forces[:, 0], (whole.forces[:, 1] - whole.forces[:, 0])[10:], rtol=1e-12)
    assert read_labels(config_of(fidelities=(0, 7)), [database]).n_structures == N // 2 - 1


@pytest.mark.parametrize(
    ("factors", "expected"), [(None, (False, False)), ((2.0, np.nan), (True, False)), ((2.0, 0.5), (True, True))]
)
def test_says_of_which_standard_deviations_the_model_holds_a_factor(
    labels: Structures, factors: tuple[float, float] | None, expected: tuple[bool, bool]
):
    members = [init_params(config_of(), torch.Generator().manual_seed(seed)) for seed in range(2)]
    calibration = None if factors is None else Calibration(*(torch.tensor([each]) for each in (*factors, 0.1)))
    known = Ensemble(config_of(), stack_members(members), calibration)
    high = labels._replace(energies=labels.energies[:, 1:], forces=labels.forces[:, 1:], levels=np.array([1]))
    found = evaluate(Predictor(known), high)
    assert found.energy_calibration is not None and found.force_calibration is not None
    assert (found.energy_calibration.calibrated, found.force_calibration.calibrated) == expected


def test_split_files_leave_the_test_structures(labels: Structures, database: Path, tmp_path: Path):
    found = labels.take(np.arange(0, N, 2))
    ids, energies = np.array([f"CH4/{m + 1}" for m in range(N // 2)]), found.energies[:, 1]
    parts = Split(np.arange(10), np.arange(10, 12), np.array([14, 17]))
    write_split(tmp_path / "split.txt", parts, ids, energies)
    read = read_labels(config_of(), [database], [tmp_path / "split.txt"])
    assert read.ids.tolist() == ["CH4/15", "CH4/18"]
    write_split(tmp_path / "split.txt", parts._replace(test=np.array([], dtype=int)), ids, energies)
    with pytest.raises(DataError, match="must mark structures to evaluate on with -1, got 12 marked 2 alone"):
        read_labels(config_of(), [database], [tmp_path / "split.txt"])


def test_says_what_labels_it_looked_for(database: Path, labels: Structures, tmp_path: Path):
    with pytest.raises(DataError, match=r"no structure of .*CH4\.db passes the filters \(fidelity 5"):
        read_labels(config_of(fidelities=(5,)), [database])
    low = labels.take([0, 2])
    low.energies[:, 1] = np.nan
    write_database(tmp_path / "CH4.low.db", low, {0: "made up", 1: "made up"})
    with pytest.raises(DataError, match="at both levels 0 and 1, got none; the files hold"):
        read_labels(config_of(baseline=0), [tmp_path / "CH4.low.db"])
    with pytest.raises(DataError, match="no file matches"):
        read_labels(config_of(), [tmp_path / "none.db"])


def test_evaluates_a_model(labels: Structures):
    config = config_of(fidelities=(0, 1))
    predictor = Predictor(config, init_params(config, torch.Generator().manual_seed(1)))
    found = evaluate(predictor, labels)
    assert found.levels[1].energy.mae == pytest.approx(KCAL * 1000, rel=0.1), "random labels round -1000 eV"
    other = labels._replace(numbers=np.where(labels.numbers == 6, 7, labels.numbers))
    with pytest.raises(ModelError, match=r"CH4/1 \(H4N\) must be of the model's elements, C, H, got N"):
        evaluate(predictor, other)

"""Runs of several fidelity levels: delta learning, and chains of levels with missing labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from runs import Settings, assert_same, changed_copy, heard, lines_of, run, timeless
from safetensors.torch import load_file

from pykinml_func.data.formats.database import read_databases
from pykinml_func.data.splits import read_split_files
from pykinml_func.errors import ConfigError, DataError
from pykinml_func.potential.forces import level_energies_and_forces
from pykinml_func.training.model_file import load_model

KCAL = 23.060548
NO_LEVEL_2 = {f"{formula}/{row}" for formula in ("C2H2", "CH4") for row in (3, 6, 9)}
NO_LEVEL_0 = {f"{formula}/2" for formula in ("C2H2", "CH4")}


def delta_settings(settings: Settings, level_databases: Path) -> Settings:
    inputs = {"input": (str(level_databases / "*.db"),), "split": (0.7, 0.15, 0.15)}
    return {**settings, **inputs, "delta": True, "fidelity": 2, "low_fidelity": (0,), "skip_incomplete": True}


def test_delta_learns_the_difference_of_two_levels(settings: Settings, level_databases: Path) -> None:
    result, setup = heard(delta_settings(settings, level_databases), epochs=30, forces=True)
    labels, split = setup.data.labels, setup.data.split
    read = read_databases(sorted(level_databases.glob("*.db")), (0, 2))
    np.testing.assert_array_equal(labels.ids, read.ids)
    np.testing.assert_array_equal(labels.energies, read.energies[:, [1]] - read.energies[:, [0]])
    np.testing.assert_array_equal(labels.forces, read.forces[:, [1]] - read.forces[:, [0]])
    config, _ = load_model(result.directory / "model.safetensors")
    assert (config.fidelities, config.baseline) == ((2,), 0)
    species = torch.tensor([0 if number == 6 else 1 for number in labels.numbers.tolist()])
    errors = []
    for m in split.test:
        atoms = slice(labels.offsets[m], labels.offsets[m + 1])
        energy, _ = level_energies_and_forces(
            config, result.params, species[atoms], torch.tensor(labels.positions[atoms])
        )
        errors.append(abs(energy[0].item() - labels.energies[m, 0]))
    assert result.errors["test"]["energy_mae"] == pytest.approx(KCAL * np.mean(errors), rel=1e-6)
    assert result.history[-1]["train_energy_rmse"] < 0.5 * result.history[0]["train_energy_rmse"]


def test_delta_leaves_out_and_counts_structures_without_both_levels(settings: Settings, level_databases: Path) -> None:
    result, setup = heard(delta_settings(settings, level_databases), epochs=1)
    assert setup.data.left_out == 8
    marks = read_split_files([result.directory / "split.txt"])
    assert len(marks) == 24 - 8 and not marks.keys() & (NO_LEVEL_2 | NO_LEVEL_0)


def test_delta_names_a_structure_without_both_levels(settings: Settings, level_databases: Path) -> None:
    with pytest.raises(
        DataError, match=r"energies at level 0 and level 2, and 8 of 24 lack some, C2H2/2 first; leave them out"
    ):
        run({**delta_settings(settings, level_databases), "skip_incomplete": False})
    assert not settings["output"].exists()


@pytest.mark.parametrize("forces", [{}, {"force_path": "jacobian"}, {"force_path": "positions"}])
def test_the_errors_of_every_level_fall(level_settings: Settings, forces: Settings) -> None:
    result = run(level_settings, epochs=30, seeds=(3, 1), forces=bool(forces), **forces)
    first, last = result.history[0], result.history[-1]
    for level in ("", "level_1_"):
        assert last[f"train_{level}energy_rmse"] < 0.5 * first[f"train_{level}energy_rmse"]
        assert result.errors["test"][f"{level}energy_rmse"] < 0.7 * first[f"valid_{level}energy_rmse"]
        if forces:
            assert last[f"train_{level}force_rmse"] < 0.8 * first[f"train_{level}force_rmse"]


def test_force_paths_train_every_level_the_same(level_settings: Settings, tmp_path: Path) -> None:
    histories = [
        run(level_settings, forces=True, force_path=path, output=tmp_path / path, low_fidelity=(0, 1)).history
        for path in ("jacobian", "positions")
    ]
    assert "train_level_0_force_mae" in histories[0][0]
    for one, other in zip(*map(timeless, histories), strict=True):
        assert one == pytest.approx(other, rel=1e-8)


def test_errors_are_those_of_the_labels_that_are_there(level_settings: Settings) -> None:
    result, setup = heard(level_settings, forces=True, low_fidelity=(0, 1), epochs=2)
    labels, split = setup.data.labels, setup.data.split
    config, params = load_model(result.directory / "model.safetensors")
    assert config.fidelities == (0, 1, 2) and config.baseline is None
    for part, members in split._asdict().items():
        energies, forces = [], []
        for m in members:
            atoms = slice(labels.offsets[m], labels.offsets[m + 1])
            species = torch.from_numpy(np.where(labels.numbers[atoms] == 6, 0, 1))
            found = level_energies_and_forces(config, params, species, torch.tensor(labels.positions[atoms]))
            energies.append(found[0].numpy() - labels.energies[m])
            forces.append(found[1].movedim(0, 1).numpy() - labels.forces[atoms])
        for column, prefix in enumerate(("level_0_", "level_1_", "")):
            mae = KCAL * np.nanmean(np.abs(energies), axis=0)[column]
            force_mae = KCAL * np.nanmean(np.abs(np.concatenate(forces)), axis=(0, 2))[column]
            assert result.errors[part][f"{prefix}energy_mae"] == pytest.approx(mae, rel=1e-6)
            assert result.errors[part][f"{prefix}force_mae"] == pytest.approx(force_mae, rel=1e-6)
        references = result.predictions[part].energies[0]
        np.testing.assert_array_equal(np.isnan(references), np.isnan(labels.energies[members]))


def test_self_energies_are_fitted_level_by_level(level_settings: Settings) -> None:
    result, setup = heard(level_settings, low_fidelity=(0, 1), epochs=1)
    labels, train = setup.data.labels, setup.data.split.train
    counts = np.array([[2.0, 2.0] if name.startswith("C2H2") else [1.0, 4.0] for name in labels.ids[train]])
    for level, found in enumerate(result.params.self_energies.numpy()):
        column = labels.energies[train, level]
        there = np.isfinite(column)
        expected, *_ = np.linalg.lstsq(counts[there], column[there], rcond=None)
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_highest_level_decides_which_model_is_kept(level_settings: Settings) -> None:
    """A large rate makes the errors jump; the lower level's error is least in another epoch."""
    result = run(level_settings, epochs=14, seeds=(3, 1), save_every=1, learning_rate=0.2, patience=100)
    best, lower = (
        int(np.argmin([record[f"valid_{level}energy_rmse"] for record in result.history])) + 1
        for level in ("", "level_1_")
    )
    assert best not in (lower, 14)
    _, kept = load_model(result.directory / "model.safetensors")
    assert_same(kept, load_model(result.directory / "checkpoints" / f"epoch_{best:05d}.safetensors")[1])


def test_the_highest_level_decides_when_the_rate_drops(level_settings: Settings) -> None:
    """A threshold that the highest level's falls pass in the first epochs alone."""
    result = run(level_settings, epochs=10, patience=0, threshold=1.0, decay=0.5)
    best, rate, expected = float("inf"), 1e-2, []
    for record in result.history:
        expected.append(rate)
        if record["valid_energy_rmse"] < best - 1.0:
            best = record["valid_energy_rmse"]
        else:
            rate /= 2
    assert [record["learning_rate"] for record in result.history] == expected
    assert len(set(expected)) >= 2


def test_learned_weights_of_levels_are_recorded(level_settings: Settings) -> None:
    result = run(level_settings, forces=True, learn_loss_weights=True)
    records = lines_of(result.directory)
    names = [name for name in records[0] if name.endswith("loss_weight")]
    assert names == [
        "level_1_energy_loss_weight",
        "energy_loss_weight",
        "level_1_force_loss_weight",
        "force_loss_weight",
    ]
    for name in names:
        weights = [record[name] for record in records]
        assert 0.8 < weights[0] < 1.2 and len({1.0, *weights}) == len(weights) + 1
    path = result.directory / "checkpoints" / "epoch_00004.safetensors"
    expected = [records[-1][name] for name in names]
    assert torch.exp(-load_file(path)["log_variances"]).tolist() == pytest.approx(expected, rel=1e-12)


def test_validation_needs_labels_of_the_highest_level(
    level_settings: Settings, level_databases: Path, tmp_path: Path
) -> None:
    """Structure 1 alone has one of those to learn from, and this seed puts it into the training part."""
    lines = [f"CH4/{row} {2 if row in (1, 2, 3, 4, 5, 6) else -1}" for row in range(1, 11)]
    (tmp_path / "tvt.txt").write_text("\n".join(lines))
    statement = "DELETE FROM energy WHERE fidelity = 2 AND xyz_id <= 6 AND xyz_id != 1"
    path = changed_copy(level_databases / "CH4.db", tmp_path, statement)
    with pytest.raises(ConfigError, match=r"with energies at the highest level to validate on .* got 4 and 0 of 10"):
        run(level_settings, input=(str(path),), split_files=(str(tmp_path / "tvt.txt"),), split=(4, 2, 0), seeds=(3, 1))
    assert not level_settings["output"].exists()


def test_each_part_gets_its_share_of_the_highest_level(level_settings: Settings) -> None:
    """18 of 24 structures have level 2."""
    for seed in range(5):
        _, setup = heard(level_settings, seeds=(seed, 1), epochs=1, output=level_settings["output"] / str(seed))
        known = np.isfinite(setup.data.labels.energies[:, -1])
        assert [int(known[part].sum()) for part in setup.data.split] == [12, 3, 3]


def test_every_level_needs_training_labels(level_settings: Settings, level_databases: Path, tmp_path: Path) -> None:
    path = changed_copy(level_databases / "C2H2.db", tmp_path, "DELETE FROM energy WHERE fidelity = 0 AND xyz_id <= 10")
    there = [row for row in range(1, 15) if row not in (3, 6, 9)]  # these have neither level now
    marks = "\n".join(f"C2H2/{row} {2 if row <= 10 else -1}" for row in there)
    (tmp_path / "tvt.txt").write_text(marks)
    with pytest.raises(ConfigError, match=r"level 0 has none among 5 training structures; train on more, or leave"):
        run(
            level_settings,
            input=(str(path),),
            low_fidelity=(0,),
            split_files=(str(tmp_path / "tvt.txt"),),
            split=(5, 2, 0),
        )


def test_every_element_needs_training_labels_of_every_level(level_settings: Settings) -> None:
    with pytest.raises(ConfigError, match=r"training structure of level 1, and O occurs in none.*--elements C,H"):
        run(level_settings, elements=("C", "H", "O"))


@pytest.mark.parametrize("parts", [{"pass_aev": False}, {"pass_energy": False}, {"sum_levels": False}])
def test_the_parts_of_the_chain_are_in_the_model(level_settings: Settings, parts: Settings) -> None:
    result = run(level_settings, **parts)
    config, _ = load_model(result.directory / "model.safetensors")
    assert {name: getattr(config, name) for name in parts} == parts
    assert result.history[-1]["train_energy_rmse"] < result.history[0]["train_energy_rmse"]

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from mishap import Striking
from runs import Listener, Settings, assert_same, changed_copy, differ, heard, lines_of, run, timeless
from torch.utils._pytree import tree_leaves

from pykinml_func.config.build import build_config
from pykinml_func.config.toml import read_toml
from pykinml_func.data.formats.sources import read_structures
from pykinml_func.data.splits import read_split_files
from pykinml_func.errors import ConfigError, DataError, PyKinMLError
from pykinml_func.inference.predictor import Predictor
from pykinml_func.potential import aev_kernel
from pykinml_func.training.checkpoint import newest_checkpoint
from pykinml_func.training.fit import fit
from pykinml_func.training.model_file import load_model

KCAL = 23.060548


@pytest.mark.parametrize("forces", [{}, {"force_path": "jacobian"}, {"force_path": "positions"}])
def test_the_errors_fall(settings: Settings, forces: Settings) -> None:
    result = run(settings, epochs=40, forces=bool(forces), **forces)
    first, last = result.history[0], result.history[-1]
    assert last["train_energy_rmse"] < 0.3 * first["train_energy_rmse"]
    assert result.errors["test"]["energy_rmse"] < 0.5 * first["valid_energy_rmse"]
    if forces:
        assert last["train_force_rmse"] < 0.6 * first["train_force_rmse"]
        assert result.errors["test"]["force_rmse"] < 0.8 * first["valid_force_rmse"]


def test_force_paths_train_the_same(settings: Settings, tmp_path: Path) -> None:
    histories = [
        run(settings, forces=True, force_path=path, output=tmp_path / path).history
        for path in ("jacobian", "positions")
    ]
    for one, other in zip(*map(timeless, histories), strict=True):
        assert one == pytest.approx(other, rel=1e-8)


def test_the_run_directory_is_whole(settings: Settings) -> None:
    result = run(settings, epochs=5, save_every=2)
    directory = result.directory
    assert {path.name for path in directory.iterdir()} == {
        "config.toml",
        "model.safetensors",
        "checkpoints",
        "metrics.jsonl",
        "split.txt",
    }
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == [
        f"epoch_{epoch:05d}.safetensors" for epoch in (2, 4, 5)
    ]
    records = lines_of(directory)
    assert records == result.history and [record["epoch"] for record in records] == [1, 2, 3, 4, 5]
    assert all(math.isfinite(value) and value > 0 for record in records for value in record.values())


def test_the_split_file_is_pykinmls(settings: Settings) -> None:
    result, setup = heard(settings)
    split, structures = setup.data.split, setup.data.labels
    marks = read_split_files([result.directory / "split.txt"])
    assert list(marks.values()) == [2] * 20 + [-1] * 4
    parts = [structures.ids[part].tolist() for part in split]
    assert list(marks) == [name for part in parts for name in part]
    assert len(marks) == 24
    energies = [float(line.split()[2]) for line in (result.directory / "split.txt").read_text().splitlines()]
    np.testing.assert_array_equal(energies, structures.energies[np.concatenate(split), 0])


@pytest.mark.parametrize("forces", [False, True])
def test_a_run_can_be_rerun_from_its_config_bit_for_bit(settings: Settings, tmp_path: Path, forces: bool) -> None:
    first = run(settings, forces=forces)
    again = build_config({**read_toml(first.directory / "config.toml"), "output": tmp_path / "again"})
    listener = Listener()
    second = fit(again, listener)
    assert listener.reused and not listener.features
    assert timeless(lines_of(first.directory)) == timeless(lines_of(second.directory))
    assert_same(first.params, second.params)
    assert (first.directory / "split.txt").read_text() == (second.directory / "split.txt").read_text()


def test_seeds_decide_the_split_the_weights_and_the_order(settings: Settings, tmp_path: Path) -> None:
    runs = {}
    for number, seeds in enumerate([(0, 1), (0, 1), (5, 1), (0, 5)]):
        runs[number] = run(settings, seeds=seeds, output=tmp_path / str(number), epochs=2)
    assert_same(runs[0].params, runs[1].params)
    texts = [(runs[k].directory / "split.txt").read_text() for k in range(4)]
    assert texts[0] == texts[1] == texts[3] != texts[2]
    assert differ(runs[0].params.networks, runs[2].params.networks)
    assert differ(runs[0].params.networks, runs[3].params.networks)


def test_the_best_model_is_that_of_the_least_validation_rmse(settings: Settings) -> None:
    """A large rate makes the errors jump, so that the best epoch is not the last."""
    result = run(settings, epochs=12, save_every=1, learning_rate=0.2, patience=100)
    rmses = [record["valid_energy_rmse"] for record in result.history]
    best = int(np.argmin(rmses)) + 1
    assert 1 < best < 12
    _, kept = load_model(result.directory / "model.safetensors")
    _, then = load_model(result.directory / "checkpoints" / f"epoch_{best:05d}.safetensors")
    _, last = load_model(result.directory / "checkpoints" / "epoch_00012.safetensors")
    assert_same(kept, then)
    assert differ(kept.networks, last.networks)
    assert result.errors["valid"]["energy_rmse"] == pytest.approx(min(rmses), rel=1e-10)


def test_reported_errors_are_those_of_the_written_model(settings: Settings, databases: Path) -> None:
    result = run(settings, forces=True)
    images = read_structures(sorted(databases.glob("*.db")))
    found = Predictor.load(result.directory / "model.safetensors").predict(images)
    listed = [line.split() for line in (result.directory / "split.txt").read_text().splitlines()]
    place = {f"C2H2/{m + 1}": m for m in range(14)} | {f"CH4/{m + 1}": 14 + m for m in range(10)}
    errors = [abs(found[place[name]].energy - float(energy)) for name, mark, energy in listed if mark == "-1"]
    assert result.errors["test"]["energy_mae"] == pytest.approx(KCAL * np.mean(errors), rel=1e-5)
    differences = np.abs(np.diff(result.predictions["test"].energies, axis=0))
    np.testing.assert_allclose(np.sort(differences.ravel()), np.sort(errors), atol=1e-8)
    forces = result.predictions["test"].forces
    assert forces is not None
    assert result.errors["test"]["force_mae"] == pytest.approx(KCAL * np.abs(forces[1] - forces[0]).mean(), rel=1e-7)


class _Order:
    """What batches the loop met, by their energies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from pykinml_func.training import loop as module

        self.seen: list[tuple[float, ...]] = []
        build = module.build_train_step

        def watched(*arguments: Any) -> Any:
            step = build(*arguments)

            def recorded(state: Any, batch: Any) -> Any:
                self.seen.append(tuple(batch.energies[batch.energy_mask > 0].tolist()))
                return step(state, batch)

            return recorded

        monkeypatch.setattr(module, "build_train_step", watched)


@pytest.mark.parametrize("order", ["fixed", "shuffled"])
def test_order_of_batches(settings: Settings, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    watcher = _Order(monkeypatch)
    run(settings, order=order, epochs=2)
    first, second = watcher.seen[:4], watcher.seen[4:]
    assert [len(batch) for batch in first] == [5, 5, 5, 1]
    assert sorted(sum(first, ())) == sorted(sum(second, ()))
    assert (first == second) is (order == "fixed")


def test_the_learning_rate_falls_on_a_plateau(settings: Settings) -> None:
    result = run(settings, epochs=5, patience=1, threshold=1e6, decay=0.5)
    assert [record["learning_rate"] for record in result.history] == [0.01, 0.01, 0.01, 0.005, 0.005]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ({"schedule": "exponential", "decay": 0.5}, [1e-2, 5e-3, 2.5e-3, 1.25e-3]),
        ({"schedule": "step", "step_size": 2, "decay": 0.1}, [1e-2, 1e-2, 1e-3, 1e-3]),
    ],
)
def test_the_learning_rate_follows_the_schedule(settings: Settings, schedule: Settings, rates: list[float]) -> None:
    assert [record["learning_rate"] for record in run(settings, **schedule).history] == pytest.approx(rates)


def test_each_optimizer_trains_in_its_own_way(settings: Settings, tmp_path: Path) -> None:
    chosen: list[Settings] = [
        {"optimizer": "adam"},
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"optimizer": "adam", "weight_decay": 0.1},
        {"optimizer": "sgd", "learning_rate": 1e-4},
        {"optimizer": "sgd", "learning_rate": 1e-4, "momentum": 0.9},
    ]
    results = [run(settings, output=tmp_path / str(k), epochs=8, **each) for k, each in enumerate(chosen)]
    for k, result in enumerate(results):
        assert result.history[-1]["train_energy_rmse"] < result.history[0]["train_energy_rmse"]
        assert all(differ(result.params.networks, other.params.networks) for other in results[:k])


def test_learned_weights_start_at_one_move_and_are_recorded(settings: Settings) -> None:
    """SGD at a rate of 10⁻⁴: d(s)/d(step) is -10⁻⁴ (1 - exp(-s) L), from the losses of the first step."""
    result = run(
        settings,
        **{"forces": True, "learn_loss_weights": True, "optimizer": "sgd", "momentum": 0.0, "learning_rate": 1e-4},
        **{"batch_size": 16, "epochs": 2},
    )
    records = lines_of(result.directory)
    assert records == result.history
    loss = (records[0]["train_energy_rmse"] / KCAL) ** 2
    first = records[0]["energy_loss_weight"]
    assert math.log(first) == pytest.approx(1e-4 * (1 - loss), rel=1e-6)
    assert first != records[1]["energy_loss_weight"] != 1
    assert records[0]["force_loss_weight"] != records[1]["force_loss_weight"]
    names = [name for name in records[0] if name.endswith("loss_weight")]
    assert names == ["energy_loss_weight", "force_loss_weight"]


def test_fixed_weights_are_not_recorded(settings: Settings) -> None:
    assert not [name for name in run(settings, forces=True, epochs=1).history[0] if "weight" in name]


def test_an_existing_run_is_kept_unless_told_otherwise(settings: Settings) -> None:
    first = run(settings, epochs=3, save_every=1)
    model = (first.directory / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"already holds a run.*--overwrite"):
        run(settings)
    assert (first.directory / "model.safetensors").read_bytes() == model
    second = run(settings, overwrite=True, epochs=2, seeds=(0, 9))
    assert len(lines_of(second.directory)) == 2
    assert [path.stem for path in (second.directory / "checkpoints").iterdir()] == ["epoch_00002"]
    assert (first.directory / "model.safetensors").read_bytes() != model


def test_output_must_be_a_directory(settings: Settings) -> None:
    settings["output"].write_text("a file of the user's")
    with pytest.raises(ConfigError, match="output must be a directory"):
        run(settings)
    assert settings["output"].read_text() == "a file of the user's"


def test_structures_without_forces_are_named(settings: Settings, databases: Path, tmp_path: Path) -> None:
    statement = "UPDATE energy SET force = NULL WHERE xyz_id IN (3, 7)"
    settings |= {"input": (str(changed_copy(databases / "CH4.db", tmp_path, statement)),), "split": (0.8, 0.1, 0.1)}
    with pytest.raises(DataError, match=r"2 of 10 lack some, CH4/3 first; leave them out with --skip-incomplete"):
        run(settings, forces=True)
    assert not settings["output"].exists()
    assert run(settings).history


def test_structures_without_forces_are_left_out_and_counted(
    settings: Settings, databases: Path, tmp_path: Path
) -> None:
    statement = "UPDATE energy SET force = NULL WHERE xyz_id IN (3, 7)"
    settings |= {"input": (str(changed_copy(databases / "CH4.db", tmp_path, statement)),), "split": (0.8, 0.1, 0.1)}
    result, setup = heard(settings, forces=True, skip_incomplete=True)
    assert setup.data.left_out == 2
    marks = read_split_files([result.directory / "split.txt"])
    assert sorted(marks) == sorted(f"CH4/{row}" for row in (1, 2, 4, 5, 6, 8, 9, 10))


def test_forces_that_are_nowhere_cannot_be_trained_to(settings: Settings, databases: Path, tmp_path: Path) -> None:
    path = changed_copy(databases / "CH4.db", tmp_path, "UPDATE energy SET force = NULL")
    with pytest.raises(DataError, match=r"none of 10 structures has any; train without forces"):
        run(settings, input=(str(path),), forces=True, skip_incomplete=True)


def test_a_split_without_validation_is_refused(settings: Settings) -> None:
    with pytest.raises(ConfigError, match=r"validate on .* got 20 and 0 of 24"):
        run(settings, split=(20, 0, 4))
    assert not settings["output"].exists()


def test_a_refused_run_leaves_neither_set_nor_folders(settings: Settings) -> None:
    """A set that was there before stays."""
    settings["output"] = settings["output"] / "several" / "deep"
    with pytest.raises(ConfigError, match="validate on"):
        run(settings, split=(20, 0, 4))
    assert not settings["prepared"].exists()
    assert not settings["output"].parents[1].exists()
    run(settings)
    (made,) = settings["prepared"].iterdir()
    with pytest.raises(ConfigError, match="validate on"):
        run(settings, split=(20, 0, 4), output=settings["output"].parent / "another")
    assert (made / "aevs.npy").exists()


def test_a_split_without_test_has_no_test_errors(settings: Settings) -> None:
    result = run(settings, split=(18, 6), epochs=1)
    assert set(result.errors) == set(result.predictions) == {"train", "valid"}


@pytest.mark.filterwarnings("ignore:overflow")
def test_divergence_is_told(settings: Settings) -> None:
    with pytest.raises(PyKinMLError, match=r"diverged in epoch \d+.*lower learning_rate \(1e\+200 now\)"):
        run(settings, learning_rate=1e200)
    assert not (settings["output"] / "model.safetensors").exists()


def test_an_unknown_device_is_told(settings: Settings) -> None:
    with pytest.raises(ConfigError, match=r"device must be .* got 'quantum'"):
        run(settings, device="quantum")


def test_an_interrupt_keeps_what_was_trained(settings: Settings, tmp_path: Path) -> None:
    listener = Listener(interrupt_after=3)
    result = fit(build_config({**settings, "epochs": 50}), listener)
    assert listener.result is result
    assert len(lines_of(result.directory)) == 3
    shorter = run(settings, epochs=3, output=tmp_path / "shorter")
    assert_same(load_model(result.directory / "model.safetensors")[1], shorter.params)


def test_an_interrupt_within_an_epoch_keeps_the_epochs_before_and_the_batches_since(
    settings: Settings, struck: Striking, tmp_path: Path
) -> None:
    shorter = run(settings, epochs=2, output=tmp_path / "shorter")
    struck(13, "SIGINT")  # before the third batch of the third epoch, of five with that of validation
    result = run(settings, epochs=50)
    assert result.stopped_by == signal.SIGINT
    assert timeless(lines_of(result.directory)) == timeless(lines_of(shorter.directory))
    assert_same(load_model(result.directory / "model.safetensors")[1], shorter.params)
    assert newest_checkpoint(result.directory).stem == "epoch_00002_batch_0000003"


def test_an_interrupt_in_the_first_epoch_is_an_interrupt(settings: Settings, struck: Striking) -> None:
    struck(2, "SIGINT")
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    assert not settings["output"].exists()


def test_a_scheduler_that_ends_a_run_in_its_first_epoch_can_resume_it(settings: Settings, struck: Striking) -> None:
    struck(2, "SIGTERM")
    result = run(settings)
    assert (result.stopped_by, result.history, result.errors) == (signal.SIGTERM, [], {})
    assert newest_checkpoint(result.directory).stem == "epoch_00000_batch_0000002"
    assert (result.directory / "config.toml").exists() and (result.directory / "split.txt").exists()
    assert not (result.directory / "model.safetensors").exists()


def test_a_second_ctrl_c_ends_a_run_at_once(settings: Settings, struck: Striking) -> None:
    """As it was after its last checkpoint: that of a batch half done would be none."""
    struck(13, "SIGINT", "SIGINT")
    with pytest.raises(KeyboardInterrupt):
        run(settings, epochs=50, save_every=2)
    assert newest_checkpoint(settings["output"]).stem == "epoch_00002"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_scheduler_may_repeat_its_signal(settings: Settings, struck: Striking) -> None:
    struck(13, "SIGTERM", "SIGTERM")
    assert run(settings, epochs=50).stopped_by == signal.SIGTERM
    assert newest_checkpoint(settings["output"]).stem == "epoch_00002_batch_0000003"


def test_several_ranks_that_nobody_started_are_refused(settings: Settings) -> None:
    with pytest.raises(
        ConfigError, match=r"2 ranks train in as many processes, and this is one alone; .*--nproc-per-node 2"
    ):
        run(settings, ranks=2)
    assert not settings["output"].exists()


def test_self_energies_are_the_least_squares_fit_to_the_training_part(settings: Settings) -> None:
    result, setup = heard(settings)
    split, structures = setup.data.split, setup.data.labels
    counts = np.array([[2, 2] if name.startswith("C2H2") else [1, 4] for name in structures.ids[split.train]])
    expected, *_ = np.linalg.lstsq(counts.astype(float), structures.energies[split.train], rcond=None)
    np.testing.assert_allclose(result.params.self_energies.numpy(), expected.T, rtol=1e-10)
    assert setup.data.self_energies.rank == 2 and setup.data.refitted


def test_one_composition_leaves_self_energies_of_least_norm(settings: Settings, databases: Path) -> None:
    result, setup = heard(settings, input=(str(databases / "C2H2.db"),), split=(10, 2, 2))
    assert setup.data.self_energies.rank == 1
    carbon, hydrogen = result.params.self_energies[0].tolist()
    assert carbon == pytest.approx(hydrogen, rel=1e-12)  # counts are 2 and 2
    mean = setup.data.labels.energies[setup.data.split.train, 0].mean()
    assert 2 * carbon + 2 * hydrogen == pytest.approx(mean, rel=1e-12)


def test_self_energies_can_be_left_out(settings: Settings) -> None:
    result = run(settings, fit_self_energies=False)
    assert result.params.self_energies.tolist() == [[0, 0]]
    assert np.abs(result.predictions["train"].energies[0]).min() > 1000


def test_the_prepared_set_is_reused(settings: Settings, tmp_path: Path) -> None:
    listeners = [Listener() for _ in range(4)]
    changes: list[Settings] = [{}, {"epochs": 2}, {"forces": True, "force_path": "jacobian"}, {"n_radial": 3}]
    for number, (listener, change) in enumerate(zip(listeners, changes, strict=True)):
        fit(build_config({**settings, **change, "output": tmp_path / str(number)}), listener)
    assert [listener.reused for listener in listeners] == [False, True, True, False]
    features = [listener.features for listener in listeners]
    new = ["structures of 24", "aevs of 24"]
    assert features == [new, [], ["jacobians of 24"], new]


def test_the_positions_path_stores_neither_aevs_nor_jacobians(settings: Settings) -> None:
    listener = Listener()
    fit(build_config({**settings, "forces": True, "force_path": "positions"}), listener)
    assert listener.features == ["structures of 24"]
    assert not [path for path in settings["prepared"].rglob("*.npy") if path.stem in ("aevs", "jacobians")]


def test_elements_and_force_path_are_filled_in(settings: Settings, either_aevs: bool) -> None:
    """Compiled AEVs are sooner computed than Jacobians are read."""
    result = run(settings, forces=True)
    config = build_config(read_toml(result.directory / "config.toml"))
    assert config.model.aev.elements == ("C", "H")
    assert config.training.force_path == ("positions" if either_aevs else "jacobian")


def test_jacobians_of_aevmod_are_stored(settings: Settings) -> None:
    result = run(settings, forces=True, aev_backend="aevmod")
    assert build_config(read_toml(result.directory / "config.toml")).training.force_path == "jacobian"


def test_memory_decides_the_force_path_without_compiled_aevs(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pykinml_func.training import setup as module

    monkeypatch.setattr(aev_kernel, "available", lambda: False)

    class Memory:
        available = 1000

    monkeypatch.setattr(module.psutil, "virtual_memory", Memory)
    result = run(settings, forces=True)
    assert build_config(read_toml(result.directory / "config.toml")).training.force_path == "positions"


@pytest.mark.parametrize(
    ("own", "jacobians"),
    [
        ({}, False),
        ({"forces": True, "force_path": "positions"}, False),
        ({"forces": True, "force_path": "jacobian"}, True),
    ],
)
def test_all_steps_but_those_from_jacobians_may_be_compiled(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, own: Settings, jacobians: bool
) -> None:
    from pykinml_func.training import fit as module

    asked: list[tuple[str, bool, int]] = []
    monkeypatch.setattr(module, "repays_compilation", lambda *about: asked.append(about) or False)
    result = run(settings, **own)
    assert asked == [("off", jacobians, 4 * len(result.history))]  # four batches an epoch


def test_split_files_decide_who_learns(settings: Settings, tmp_path: Path) -> None:
    learn = [f"C2H2/{m}" for m in range(1, 11)] + [f"CH4/{m}" for m in range(1, 9)]
    tests = ["C2H2/13", "CH4/10"]
    lines = [f"{name} 2 -1.5" for name in learn] + [f"{name} -1" for name in tests]
    (tmp_path / "tvt.txt").write_text("\n".join(lines))
    _, setup = heard(settings, split_files=[str(tmp_path / "tvt.txt")], split=(14, 4, 0))
    ids, split = setup.data.labels.ids, setup.data.split
    assert sorted(ids[split.test]) == sorted(tests)
    assert sorted(ids[np.concatenate([split.train, split.valid])]) == sorted(learn)
    assert (len(split.train), len(split.valid)) == (14, 4)


def test_single_precision_networks_and_double_self_energies(settings: Settings, tmp_path: Path) -> None:
    single = run(settings, precision="float32", forces=True, output=tmp_path / "single", epochs=2)
    double = run(settings, forces=True, epochs=2)
    assert {leaf.dtype for leaf in tree_leaves(single.params.networks)} == {torch.float32}
    assert torch.equal(single.params.self_energies, double.params.self_energies)
    assert timeless(single.history)[-1] == pytest.approx(timeless(double.history)[-1], rel=1e-2)


def test_a_directory_takes_one_run_at_a_time(settings: Settings) -> None:
    output = Path(settings["output"])
    output.mkdir()
    told = r"is being written by another run; choose another with --output"
    with FileLock(output / "running"), pytest.raises(ConfigError, match=told):
        run(settings)
    run(settings)
    assert not (output / "running").exists()


def test_an_overwritten_run_is_kept_until_the_new_one_has_an_epoch(settings: Settings) -> None:
    model = run(settings).directory / "model.safetensors"
    before = model.read_bytes()
    with pytest.raises(ConfigError):
        run(settings, overwrite=True, split=(0.5, 0.0, 0.5))
    assert model.read_bytes() == before


def test_an_element_without_training_structures_is_refused(settings: Settings) -> None:
    with pytest.raises(
        ConfigError, match=r"O occurs in none; train on more structures, or leave it out: --elements C,H"
    ):
        run(settings, elements=("C", "H", "O"))


def test_the_number_of_threads_is_as_before(settings: Settings) -> None:
    before = torch.get_num_threads()
    run(settings, threads=before + 1)
    assert torch.get_num_threads() == before

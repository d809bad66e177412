"""A run that was cut short and resumed is the run that was not: bit for bit, whatever it was cut by, and wherever."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from mishap import befall, spare
from runs import (
    LEVELS,
    Listener,
    Settings,
    assert_same,
    assert_same_run,
    changed_copy,
    lines_of,
    metadata_of,
    run,
    tensors_of,
    timeless,
)
from safetensors.torch import load_file, save_file

from pykinml_func.config.build import build_config
from pykinml_func.errors import ConfigError, ModelError
from pykinml_func.training.checkpoint import newest_checkpoint
from pykinml_func.training.compilation import RecordedStep
from pykinml_func.training.fit import fit
from pykinml_func.training.reporter import RunResult

FORCES: Settings = {"forces": True, "force_path": "positions"}
KINDS: dict[str, Settings] = {
    "plateau": {"patience": 0, "threshold": 0.5},
    "cosine, mean and annealed weight": {"recipe": "fast", **FORCES},
    "learned weights": {**FORCES, "learn_loss_weights": True, "optimizer": "adamw", "schedule": "exponential"},
    "levels": {**LEVELS, **FORCES, "learn_loss_weights": True, "optimizer": "sgd", "learning_rate": 1e-3},
    "ensemble": {"ensemble": 3, "ensemble_data": "bootstrap", **FORCES, "learn_loss_weights": True, "patience": 0},
    "fixed order": {"order": "fixed", "precision": "float32", "schedule": "step", "step_size": 2},
}
LONG: Settings = {"epochs": 13, "save_every": 3, "valid_batch_size": 2}
AN_EPOCH = 6
"""Batches of it: 4 of training, then 2 of validation."""


pytestmark = pytest.mark.usefixtures("struck")  # or a test that fails would befall the next


@pytest.fixture
def of_kind(settings: Settings, level_settings: Settings) -> Any:
    """Settings of a run of that kind, in that directory beside others."""

    def make(kind: str, name: str, **more: Any) -> Settings:
        common = level_settings if kind == "levels" else settings
        output = settings["output"].parent / name
        return {**common, **LONG, **KINDS[kind], "output": output, **more}

    return make


def resumed(settings: Settings, **more: Any) -> RunResult:
    return fit(build_config({**settings, **more}), Listener(), resume=True)


def cut_short(settings: Settings, batch: int, what: str = "SIGTERM", resume: bool = False) -> RunResult:
    befall(batch, what)
    result = fit(build_config(settings), Listener(), resume=resume)
    spare()
    return result


def recorded_run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> RunResult:
    """A run whose steps are recorded at their third call, where those of a short one are not at all."""
    with monkeypatch.context() as patch:
        patch.setattr(RecordedStep.__init__, "__defaults__", (False, 2))
        result = run(settings)
    assert result.shapes >= 2  # of training and of validation
    return result


@pytest.mark.parametrize(
    ("kind", "batches"),
    [
        ("plateau", [AN_EPOCH + batch for batch in range(1, 7)]),
        *((kind, [2, 7 * AN_EPOCH + 5, 10 * AN_EPOCH + 3]) for kind in KINDS if kind != "plateau"),
    ],
)
def test_a_run_is_gone_on_with_from_any_batch(
    of_kind: Any, kind: str, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in training, in validation or between epochs, and then once again: the run that was not stopped, although
    that one took its steps recorded, and these take them eagerly.
    """
    whole, cut = of_kind(kind, "whole"), of_kind(kind, "cut")
    assert recorded_run(whole, monkeypatch).stopped_by == 0
    for batch in batches:
        stopped = cut_short(cut, batch)
        assert (stopped.stopped_by, stopped.errors) == (signal.SIGTERM, {})
        assert cut_short(cut, AN_EPOCH, "SIGUSR1", resume=True).stopped_by == signal.SIGUSR1
        ended = resumed(cut)
        assert ended.stopped_by == 0 and len(ended.history) == 13
        assert_same_run(cut["output"], whole["output"])
        shutil.rmtree(cut["output"])


def test_ctrl_c_can_be_resumed_too(of_kind: Any) -> None:
    whole, cut = of_kind("plateau", "whole"), of_kind("plateau", "cut")
    run(whole)
    stopped = cut_short(cut, 2 * AN_EPOCH + 3, "SIGINT")
    assert stopped.stopped_by == signal.SIGINT and set(stopped.errors) == {"train", "valid", "test"}
    assert resumed(cut).errors == run(whole, overwrite=True).errors
    assert_same_run(cut["output"], whole["output"])


def _train(settings: Settings, resume: bool) -> None:
    """In a process of its own."""
    fit(build_config(settings), Listener(), resume=resume)


def test_a_killed_run_goes_on_from_its_last_checkpoint(of_kind: Any) -> None:
    """Killed three times, each some moments after the next checkpoint was written."""
    whole, cut = of_kind("learned weights", "whole"), of_kind("learned weights", "cut", save_every=2)
    run(whole, save_every=2)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["runs"])  # imports torch once
    for kill, epoch in enumerate((2, 6, 10)):
        process = processes.Process(target=_train, args=(cut, kill > 0))
        process.start()
        written, deadline = cut["output"] / "checkpoints" / f"epoch_{epoch:05d}.safetensors", time.monotonic() + 60
        while not written.exists():
            assert process.is_alive() and time.monotonic() < deadline
            time.sleep(1e-3)
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        process.join()
        assert len(lines_of(cut["output"])) < 13
    assert resumed(cut).stopped_by == 0
    assert_same_run(cut["output"], whole["output"])


def test_what_was_written_after_the_last_checkpoint_is_done_again(of_kind: Any) -> None:
    """The model and the records are written before it."""
    whole, cut = of_kind("plateau", "whole"), of_kind("plateau", "cut")
    run(whole)
    run(cut, epochs=7)
    newest_checkpoint(cut["output"]).unlink()
    assert (newest_checkpoint(cut["output"]).stem, len(lines_of(cut["output"]))) == ("epoch_00006", 7)
    resumed(cut)
    assert timeless(lines_of(cut["output"])) == timeless(lines_of(whole["output"]))


def test_a_run_that_was_resumed_can_be_made_longer(of_kind: Any) -> None:
    whole, cut = of_kind("plateau", "whole"), of_kind("plateau", "cut")
    run(whole)
    run(cut, epochs=7)
    assert len(resumed(cut).history) == 13
    assert timeless(lines_of(cut["output"])) == timeless(lines_of(whole["output"]))
    assert_same(tensors_of(cut["output"]), tensors_of(whole["output"]))


@pytest.mark.parametrize("more", [{"schedule": "cosine"}, {**FORCES, "force_weight": 0.5, "force_weight_end": 0.1}])
def test_what_falls_over_all_epochs_keeps_their_number(settings: Settings, more: Settings) -> None:
    cut = begun({**settings, **LONG, **more})
    with pytest.raises(ConfigError, match=r"epochs cannot change .* falls over all 13 of them, got 14; leave it out"):
        resumed(cut, epochs=14)
    assert len(resumed(cut).history) == 13


def test_a_run_that_was_trained_on_from_a_checkpoint_is_resumed_too(of_kind: Any) -> None:
    """Its cosine began before it did."""
    kind = "cosine, mean and annealed weight"
    first = run(of_kind(kind, "first", epochs=5, save_every=2)).directory / "checkpoints" / "epoch_00002.safetensors"
    more = {"start_from": first, "keep_optimizer": True, "epochs": 6}
    whole, cut = (of_kind(kind, name, **more) for name in ("whole", "cut"))
    for settings in (whole, cut):
        del settings["learning_rate"]
    run(whole)
    cut_short(cut, 3 * AN_EPOCH + 1)
    resumed(cut)
    assert_same_run(cut["output"], whole["output"])


def begun(settings: Settings) -> Settings:
    """A run that was stopped in its second epoch."""
    cut_short(settings, AN_EPOCH + 2)
    return settings


def without_progress(path: Path) -> None:
    """A checkpoint as versions before this one wrote it."""
    kept = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(("best.", "sums."))}
    metadata = metadata_of(path)
    del metadata["training"]["progress"]
    save_file(kept, path, metadata | {"training": json.dumps(metadata["training"])})


def test_a_run_that_has_all_its_epochs_is_not_resumed(of_kind: Any) -> None:
    done = of_kind("plateau", "run", epochs=3)
    before = run(done).directory.joinpath("model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"has had all its 3 epochs; give more with --epochs, or train on"):
        resumed(done)
    assert done["output"].joinpath("model.safetensors").read_bytes() == before


def test_other_data_are_not_gone_on_with(of_kind: Any, databases: Path, tmp_path: Path) -> None:
    cut, folder = begun(of_kind("plateau", "run")), tmp_path / "changed"
    folder.mkdir()
    changed_copy(databases / "C2H2.db", folder, "UPDATE energy SET E = E * 1.001 WHERE xyz_id = 3")
    shutil.copy(databases / "CH4.db", folder)
    before = newest_checkpoint(cut["output"])
    with pytest.raises(ConfigError, match=r"data and their split must be those that .* got others; bring the"):
        resumed(cut, input=(str(folder / "*.db"),))
    assert newest_checkpoint(cut["output"]) == before
    assert resumed(cut).stopped_by == 0


def test_another_split_is_not_gone_on_with(of_kind: Any, tmp_path: Path) -> None:
    """Or it would validate on what it was trained on."""
    first = run(of_kind("plateau", "first", epochs=1)).directory / "split.txt"
    split_file = tmp_path / "tvt.txt"
    shutil.copy(first, split_file)
    own = {"split_files": (str(split_file),), "split": (16, 4, 0)}
    cut = begun(of_kind("plateau", "run", **own))
    lines = split_file.read_text().splitlines(keepends=True)
    split_file.write_text("".join([lines[-1].replace(" -1 ", " 2 "), *lines[1:-1], lines[0].replace(" 2 ", " -1 ")]))
    with pytest.raises(ConfigError, match="data and their split must be those"):
        resumed(cut)
    shutil.copy(first, split_file)
    assert resumed(cut).stopped_by == 0


def test_data_at_another_place_are_the_same(of_kind: Any, databases: Path, tmp_path: Path) -> None:
    cut, whole = begun(of_kind("plateau", "run")), of_kind("plateau", "whole")
    for database in databases.glob("*.db"):
        shutil.copy(database, tmp_path)
    resumed(cut, input=(str(tmp_path / "*.db"),), prepared=tmp_path / "another")
    run(whole)
    assert_same_run(cut["output"], whole["output"])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (shutil.rmtree, "got no checkpoints in it; start anew without --resume"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "got no checkpoints in it; start anew without --resume"),
        (lambda run: without_progress(newest_checkpoint(run)), "older version, .* with --start-from and"),
        (lambda run: (run / "metrics.jsonl").unlink(), r"must have a line for each of 1 epochs, got 0; start the run"),
        (lambda run: (run / "metrics.jsonl").write_text(""), r"must have a line for each of 1 epochs, got 0"),
        (lambda run: newest_checkpoint(run).write_bytes(b"half"), "is another file or a damaged one"),
    ],
)
def test_what_cannot_be_gone_on_with_is_named(of_kind: Any, spoil: Any, said: str) -> None:
    cut = begun(of_kind("plateau", "run"))
    spoil(cut["output"])
    with pytest.raises(ModelError, match=said):
        resumed(cut)


def test_a_run_is_resumed_once_at_a_time(of_kind: Any) -> None:
    cut = begun(of_kind("plateau", "run"))
    with FileLock(cut["output"] / "running"), pytest.raises(ConfigError, match="is being written by another run"):
        resumed(cut)
    assert resumed(cut).stopped_by == 0


def test_a_lock_that_a_killed_run_left_locks_nothing(of_kind: Any) -> None:
    cut = begun(of_kind("plateau", "run"))
    (cut["output"] / "running").touch()
    assert resumed(cut).stopped_by == 0
    assert not (cut["output"] / "running").exists()


def test_a_checkpoint_from_within_an_epoch_is_removed_by_the_next(of_kind: Any) -> None:
    cut = begun(of_kind("plateau", "run"))
    assert [path.stem for path in (cut["output"] / "checkpoints").iterdir()] == ["epoch_00001_batch_0000002"]
    resumed(cut)
    found = sorted(path.stem for path in (cut["output"] / "checkpoints").iterdir())
    assert found == [f"epoch_{epoch:05d}" for epoch in (3, 6, 9, 12, 13)]

"""Several ranks, with DistributedDataParallel and fully_shard, against one: real processes, started by torchrun.

An epoch is four batches of 5, 5, 5 and 1 structures of two sizes, so that the shares are unequal and some are empty;
of two elements, fully_shard leaves two of four ranks without parameters.
"""

from __future__ import annotations

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from mishap import befall, spare
from rank_runs import found_by, train_by
from runs import LEVELS, Settings, assert_close_run, run, small_run, tensors_of, timeless

from pykinml_func.config.build import build_config
from pykinml_func.training.checkpoint import newest_checkpoint
from pykinml_func.training.fit import fit
from pykinml_func.training.reporter import SilentReporter

FORCES: Settings = {"forces": True, "force_path": "positions"}
MEAN: Settings = {"ema": 0.9}
CASES: dict[str, Settings] = {
    "energies": {},
    "forces": {**FORCES, "schedule": "cosine", **MEAN},
    "jacobians": {"forces": True, "force_path": "jacobian"},
    "learned": {**FORCES, "learn_loss_weights": True},
    "delta": {"delta": True, "low_fidelity": (0,), **FORCES, "skip_incomplete": True, "split": (13, 4, 3)},
    "levels": {**LEVELS, **FORCES, "learn_loss_weights": True},
    "ensemble": {"ensemble": 3, "ensemble_data": "folds", **FORCES, **MEAN, "schedule": "cosine"},
    "fixed": {"order": "fixed", "optimizer": "soap", "valid_batch_size": 3},
    "fsdp": {**FORCES, **MEAN, "fsdp": True},
    "fsdp sgd": {"optimizer": "sgd", "learning_rate": 1e-3, **MEAN, "fsdp": True},
    "fsdp soap": {"optimizer": "soap", **FORCES, **MEAN, "fsdp": True},
    "fsdp levels": {**LEVELS, "learn_loss_weights": True, "fsdp": True},
}
BY_SOAP = ("fixed", "fsdp soap")
"""Its bases are at the mercy of rounding in directions without gradients: where one rank adds up its batches in another
order, parameters differ by 1e-8, and so they do between ranks.
"""
ON_LEVELS = ("delta", "levels", "fsdp levels")
SIZES = (2, 4)
STOPS = {"training": 2, "validation": 4}
"""Batches of the second epoch that are done where a run is stopped."""
STOPPED: dict[str, Settings] = {
    "training": {"valid_batch_size": 2},
    "validation": {**FORCES, "learn_loss_weights": True, **MEAN, "valid_batch_size": 2},
}
"""Four batches an epoch, and two of validation."""


@pytest.fixture(scope="module")
def settings_of(databases: Path, level_databases: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Settings of the case of that name, trained by so many ranks."""
    folder = tmp_path_factory.mktemp("ranks")

    def make(case: str, ranks: int, **more: Any) -> Settings:
        own = CASES.get(case) or STOPPED.get(case.rsplit(maxsplit=1)[-1], {})
        inputs = level_databases if case in ON_LEVELS else databases
        places = {"prepared": folder / f"prepared {ranks}", "output": folder / f"{case} {ranks}"}
        plain = {"fsdp": False} if ranks == 1 else {}
        return {**small_run(inputs, folder), "epochs": 3, "save_every": 1, **places, **own, **plain, **more}

    return make


@pytest.fixture(scope="module")
def trained(settings_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run directory of a case, as trained by so many ranks; and of what one rank began and several ended, or the
    other way round.
    """
    for case in CASES:
        run(settings_of(case, 1))
    for where, done in STOPS.items():
        run(settings_of(f"whole {where}", 1))
        begun = settings_of(f"begun {where}", 1)
        befall(6 + done, "SIGTERM")
        assert run(begun).stopped_by
        spare()
        for ranks in SIZES:
            for way in ("ddp", "fsdp"):
                copytree(begun["output"], settings_of(f"{way} from {where}", ranks)["output"])
    for ranks in SIZES:
        runs: list[dict[str, Any]] = [{"settings": settings_of(case, ranks)} for case in CASES]
        for where, done in STOPS.items():
            for way in ("ddp", "fsdp"):
                more = {"fsdp": way == "fsdp"}
                ending = {"settings": settings_of(f"{way} from {where}", ranks, **more), "resume": True}
                begun = {"settings": settings_of(f"{way} to {where}", ranks, **more)}
                # the others hear of it one batch later
                runs += [ending, {**begun, "mishap": (1, 6 + done - 1, "SIGUSR1")}]
        train_by(ranks, runs, tmp_path_factory.mktemp("runs"))
    return lambda case, ranks: Path(settings_of(case, ranks)["output"])


@pytest.mark.parametrize("ranks", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_several_ranks_train_what_one_does(trained: Any, case: str, ranks: int) -> None:
    """Parameters, moments, running means, loss weights and every record, after three epochs."""
    assert_close_run(trained(case, ranks), trained(case, 1), 1e-6 if case in BY_SOAP else 1e-10)


@pytest.mark.parametrize("ranks", SIZES)
def test_every_rank_knows_the_errors_of_all_and_the_first_alone_reports(trained: Any, ranks: int) -> None:
    first, *others = (found_by(rank, trained("forces", ranks)) for rank in range(ranks))
    assert (first["heard"], first["predicted"]) == (3, ["test", "train", "valid"])
    for other in others:
        assert timeless(other["history"]) == timeless(first["history"])
        assert other["errors"] == first["errors"]
        assert (other["heard"], other["predicted"]) == (0, [])
    files = {path.name for path in trained("forces", ranks).iterdir()}
    assert files == {"config.toml", "model.safetensors", "checkpoints", "metrics.jsonl", "split.txt"}


@pytest.mark.parametrize("ranks", SIZES)
def test_the_parts_of_a_sharded_state_are_put_together(trained: Any, ranks: int) -> None:
    """Bases of SOAP's curvature, which fully_shard cuts along their species too, included."""
    found, expected = tensors_of(trained("fsdp soap", ranks)), tensors_of(trained("fsdp soap", 1))
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}
    assert any(name.startswith("optimizer.moments.5") for name in found)


@pytest.mark.parametrize("ranks", SIZES)
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("where", STOPS)
def test_what_one_rank_began_several_go_on_with(trained: Any, where: str, way: str, ranks: int) -> None:
    assert_close_run(trained(f"{way} from {where}", ranks), trained(f"whole {where}", 1))


@pytest.mark.parametrize("ranks", SIZES)
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("where", STOPS)
def test_what_several_ranks_began_one_goes_on_with(
    trained: Any, settings_of: Any, tmp_path: Path, where: str, way: str, ranks: int
) -> None:
    """One rank alone got the signal; all of them stopped at the same batch."""
    begun = trained(f"{way} to {where}", ranks)
    assert newest_checkpoint(begun).stem == f"epoch_00001_batch_{STOPS[where]:07d}"
    assert all(found_by(rank, begun)["stopped_by"] for rank in range(ranks))
    copytree(begun, tmp_path / "run")
    ended = settings_of(f"{way} to {where}", 1, output=tmp_path / "run")
    assert fit(build_config(ended), SilentReporter(), resume=True).stopped_by == 0
    assert_close_run(tmp_path / "run", trained(f"whole {where}", 1))

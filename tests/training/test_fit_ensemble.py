from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from runs import LEVELS, Settings, assert_same, heard, lines_of, run, tensors_of

from pykinml_func.config import RunConfig
from pykinml_func.config.build import build_config
from pykinml_func.data.loader import Loader
from pykinml_func.data.members import member_structures
from pykinml_func.errors import ConfigError, PyKinMLError
from pykinml_func.inference.evaluation import predictions_of
from pykinml_func.inference.predictor import Predictor
from pykinml_func.inference.recalibration import fit_calibration
from pykinml_func.potential.ensemble import as_members, member_of, stack_members
from pykinml_func.training import loop as loop_module
from pykinml_func.training.model_file import load_ensemble, load_model, save_ensemble
from pykinml_func.types import Ensemble

FORCES: Settings = {"forces": True, "force_path": "positions"}
KINDS: dict[str, Settings] = {
    "energies": {},
    "plateaus of their own": {"patience": 0, "threshold": 0.0, "epochs": 8, "learning_rate": 0.1},
    "forces, mean, cosine": {**FORCES, "ema": 0.9, "schedule": "cosine"},
    "fast": {"recipe": "fast", "force_path": "positions"},
    "jacobians": {"forces": True, "force_path": "jacobian", "optimizer": "adamw", "weight_decay": 1e-2},
    "levels, learned weights": {**LEVELS, **FORCES, "learn_loss_weights": True, "optimizer": "sgd"},
    "fixed order": {"order": "fixed"},
}
E = 3


@pytest.fixture
def of_kind(settings: Settings, level_settings: Settings) -> Any:
    def make(kind: str, name: str, **more: Any) -> Settings:
        common = level_settings if kind.startswith("levels") else settings
        return {**common, "epochs": 3, **KINDS[kind], "output": settings["output"].with_name(name), **more}

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_each_member_is_what_it_would_be_alone(of_kind: Any, kind: str) -> None:
    """With the seed of its own, after as many epochs; and what it keeps is its own best epoch."""
    together = run(of_kind(kind, "together", ensemble=E, seeds=(0, 5)))
    members = load_ensemble(together.directory / "model.safetensors").members
    assert_same(members, together.params)
    last = tensors_of(together.directory)
    for place in range(E):
        alone = run(of_kind(kind, f"alone {place}", seeds=(0, 5 + place)))
        expected = load_model(alone.directory / "model.safetensors")[1]
        torch.testing.assert_close(member_of(members, place), expected, rtol=1e-8, atol=1e-8)
        mine = [record[f"member_{place}_valid_energy_rmse"] for record in together.history]
        assert mine == pytest.approx([record["valid_energy_rmse"] for record in alone.history], rel=1e-8)
        for name, tensor in tensors_of(alone.directory).items():
            if not name.startswith("domain"):
                torch.testing.assert_close(last[name][place], tensor, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", ["energies", "forces, mean, cosine", "jacobians", "levels, learned weights"])
def test_members_may_share_their_batches(of_kind: Any, kind: str) -> None:
    """Those of the first, which is as it would be alone; and in a fixed order all of them share them anyway."""
    common = {"ensemble": E, "seeds": (0, 5)}
    shared = run(of_kind(kind, "shared", **common, ensemble_data="shared"))
    alone = run(of_kind(kind, "alone", seeds=(0, 5)))
    torch.testing.assert_close(member_of(shared.params, 0), alone.params, rtol=1e-8, atol=1e-8)
    ordered = [
        run(of_kind(kind, f"{data} in order", **common, order="fixed", ensemble_data=data)).params
        for data in ("all", "shared")
    ]
    torch.testing.assert_close(*ordered, rtol=1e-8, atol=1e-8)


def test_members_have_plateaus_of_their_own(of_kind: Any) -> None:
    result = run(of_kind("plateaus of their own", "run", ensemble=E))
    rates = tensors_of(result.directory)["optimizer.step"]
    assert rates.shape == (E,)
    bests = {
        int(np.argmin([record[f"member_{place}_valid_energy_rmse"] for record in result.history])) for place in range(E)
    }
    assert len(bests) > 1, "every member keeps another epoch here"


def test_a_record_has_the_members_means(settings: Settings) -> None:
    result = run(settings, ensemble=E, **FORCES)
    for record in result.history:
        members = [record[f"member_{place}_valid_energy_rmse"] for place in range(E)]
        assert record["valid_energy_rmse"] == pytest.approx(np.mean(members), rel=1e-12)
        assert record["valid_force_rmse"] > 0
    assert lines_of(result.directory) == result.history


def test_the_errors_are_those_of_the_mean(settings: Settings) -> None:
    """Which are no larger than the members' on average."""
    result = run(settings, ensemble=E, **FORCES)
    references, predicted = result.predictions["valid"].energies[..., 0]
    rmse = 23.060548 * np.sqrt(np.mean((predicted - references) ** 2))
    assert result.errors["valid"]["energy_rmse"] == pytest.approx(rmse, rel=1e-6)
    best = [min(record[f"member_{place}_valid_energy_rmse"] for record in result.history) for place in range(E)]
    assert rmse <= np.mean(best)


@pytest.mark.parametrize("forces", [False, True])
def test_the_model_file_says_how_far_it_can_be_trusted(settings: Settings, forces: bool) -> None:
    found = load_ensemble(run(settings, ensemble=E, forces=forces).directory / "model.safetensors")
    assert found.calibration is not None and found.domain is not None
    assert found.calibration.energy_scale.item() > 0 and found.calibration.spread_limit > 0
    assert torch.isfinite(found.calibration.force_scale).all() == forces
    assert (found.domain.farthest >= 1).all()


def test_one_model_has_a_domain_and_no_calibration(settings: Settings) -> None:
    found = load_ensemble(run(settings).directory / "model.safetensors")
    assert (found.n_members, found.calibration) == (1, None) and found.domain is not None


def test_an_ensemble_trains_on(settings: Settings) -> None:
    """All its members do, in the same places, and need no word of how many they are."""
    first = run(settings, ensemble=E)
    output = settings["output"].with_name("on")
    again, setup = heard(settings, output=output, start_from=first.directory / "model.safetensors")
    assert setup.config.training.ensemble == E
    assert_same(setup.params, first.params)
    assert load_ensemble(output / "model.safetensors").n_members == E
    assert again.history[0]["valid_energy_rmse"] < first.history[0]["valid_energy_rmse"]


def test_an_ensemble_goes_on_from_its_checkpoint(settings: Settings) -> None:
    """Two epochs and two more are four."""
    common = {"ensemble": E, "order": "fixed", **FORCES}
    whole = run(settings, **common, output=settings["output"].with_name("whole"), epochs=4)
    half = run(settings, **common, epochs=2)
    start = half.directory / "checkpoints" / "epoch_00002.safetensors"
    rest = {name: value for name, value in settings.items() if name != "learning_rate"}
    rest |= {"output": settings["output"].with_name("rest"), "start_from": start, "keep_optimizer": True, "epochs": 2}
    run(rest, **common)
    mine, theirs = tensors_of(rest["output"]), tensors_of(whole.directory)
    for name in (name for name in theirs if name.startswith(("networks", "optimizer"))):
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-12, atol=1e-14)


def test_all_members_may_start_from_one_model(settings: Settings) -> None:
    first = run(settings)
    output = settings["output"].with_name("on")
    _, setup = heard(settings, output=output, start_from=first.directory / "model.safetensors", ensemble=E)
    assert_same(setup.params, stack_members([first.params] * E))


@pytest.mark.parametrize("ensemble", [1, 2])
def test_members_are_not_lost_on_the_way(settings: Settings, ensemble: int) -> None:
    first = run(settings, ensemble=E)
    model = first.directory / "model.safetensors"
    with pytest.raises(ConfigError, match=rf"ensemble must be as many .* got {ensemble}, and .* has 3; leave ensemble"):
        run(settings, output=settings["output"].with_name("on"), start_from=model, ensemble=ensemble)


def test_members_of_other_self_energies_do_not_train_on(settings: Settings, tmp_path: Path) -> None:
    first = run(settings, ensemble=2)
    config, members, *_ = load_ensemble(first.directory / "model.safetensors")
    shifted = as_members(members)._replace(self_energies=members.self_energies + torch.tensor([0.0, 1.0]).view(2, 1, 1))
    save_ensemble(tmp_path / "mixed.safetensors", Ensemble(config, shifted))
    with pytest.raises(ConfigError, match=r"must share their self energies, and those of .* do not; train them on one"):
        run(settings, output=settings["output"].with_name("on"), start_from=tmp_path / "mixed.safetensors")


def test_a_member_that_diverges_ends_the_run(settings: Settings) -> None:
    told = r"diverged in epoch 1: the errors of member 0 are no longer finite; lower learning_rate \(1e\+200 now\)"
    with pytest.raises(PyKinMLError, match=told):
        run(settings, ensemble=2, optimizer="sgd", learning_rate=1e200)


@pytest.mark.parametrize("kind", ["bootstrap", "folds"])
def test_members_may_see_other_structures(settings: Settings, kind: str) -> None:
    """So that they differ where they begin alike."""
    start = run(settings).directory / "model.safetensors"
    common = {"start_from": start, "ensemble": 2, "order": "fixed", "output": settings["output"].with_name("on")}
    all_alike = run(settings, **common)
    assert_same(*(member_of(all_alike.params, place).networks for place in range(2)))
    apart = run(settings, overwrite=True, **common, ensemble_data=kind)
    one, other = (member_of(apart.params, place).networks[0].weights[0] for place in range(2))
    assert not torch.equal(one, other)


def test_fewer_structures_than_folds_are_told(settings: Settings) -> None:
    with pytest.raises(ConfigError, match=r"folds needs a training structure for each of 17 members, got 16; train on"):
        run(settings, ensemble=17, ensemble_data="folds")


@pytest.mark.parametrize("kind", ["bootstrap", "folds"])
def test_a_member_with_structures_of_its_own_is_what_it_would_be_alone_with_them(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, kind: Literal["bootstrap", "folds"]
) -> None:
    together = run(settings, ensemble=E, seeds=(0, 5), ensemble_data=kind)
    for place in range(E):

        def own(_: RunConfig, train: Loader, place: int = place) -> Loader:
            samples = member_structures(train.packer.members, kind, (5, 6, 7))
            return Loader(train.packer.of(samples[place]), 5 + place)

        monkeypatch.setattr(loop_module, "make_training_loader", own)
        alone = run(settings, seeds=(0, 5 + place), output=settings["output"].with_name(f"alone {place}"))
        torch.testing.assert_close(member_of(together.params, place), alone.params, rtol=1e-8, atol=1e-8)


def test_every_member_is_trained_on_all_that_the_whole_set_has(level_settings: Settings) -> None:
    """Level 2 has energies in some structures alone, all of which some sample of so few lacks."""
    few = {**level_settings, "split": (3, 4, 0), "ensemble": 100}
    told = r"the sample of member \d+ has no energies of [CH] at level 2 \(ensemble_data = bootstrap\); train on more"
    with pytest.raises(ConfigError, match=told):
        run(few, ensemble_data="bootstrap")


def test_the_validation_set_calibrates_and_the_training_set_bounds(settings: Settings) -> None:
    result, setup = heard(settings, ensemble=E, forces=True)
    ensemble = load_ensemble(result.directory / "model.safetensors")
    labels, split = setup.data.labels, setup.data.split
    expected = fit_calibration(ensemble, labels.take(split.valid))
    torch.testing.assert_close(ensemble.calibration, expected, rtol=1e-6, atol=0)
    farthest = [
        max(each.distance for each in predictions_of(Predictor(ensemble), labels.take(part))) for part in split[:2]
    ]
    assert 0.999 < farthest[0] <= 1 and abs(farthest[1] - 1) > 1e-3


def test_fsdp_takes_no_members(settings: Settings) -> None:
    """Typed with them, of a run that has them, or from a file of them."""
    told = r"fsdp cuts one model among the ranks, got ensemble.* = 2; leave one of them out"
    with pytest.raises(ConfigError, match=told):
        run(settings, ensemble=2, fsdp=True)
    with pytest.raises(ConfigError, match=told):
        build_config({"fsdp": True}, {"ensemble": 2})
    model = run(settings, ensemble=2).directory / "model.safetensors"
    with pytest.raises(ConfigError, match=r"fsdp cuts one model among the ranks, got 2 members in .*; leave fsdp out"):
        run(settings, output=settings["output"].with_name("on"), start_from=model, fsdp=True)

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pykinml_func.config import RunConfig, TrainConfig
from pykinml_func.config.recipes import RECIPES


def test_configs_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("Adam", "adam"), ("AdamW", "adamw"), ("SGD", "sgd"), ("sgd", "sgd")],
)
def test_optimizers_go_by_pykinmls_names_too(typed: str, meant: str) -> None:
    assert TrainConfig(optimizer=typed).optimizer == meant  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("typed", "meant"), [("rop", "plateau"), ("exp", "exponential"), ("step", "step"), ("Plateau", "plateau")]
)
def test_schedules_go_by_pykinmls_names_too(typed: str, meant: str) -> None:
    assert TrainConfig(schedule=typed).schedule == meant  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"force_weight": 0.5}, "force_weight needs forces, got force_weight = 0.5"),
        (
            {"force_weight": 0.5, "forces": True, "learn_loss_weights": True},
            "force_weight and learn_loss_weights contradict each other, got force_weight = 0.5",
        ),
        ({"momentum": 0.9}, "momentum needs optimizer = sgd"),
        ({"patience": 3, "schedule": "step"}, "patience needs schedule = plateau"),
        ({"threshold": 0.1, "schedule": "exp"}, "threshold needs schedule = plateau"),
        ({"step_size": 3}, "step_size needs schedule = step"),
        ({"force_weight_end": 0.1}, "force_weight_end needs forces"),
        ({"warmup": 3}, "warmup needs schedule = cosine"),
        ({"decay": 0.1, "schedule": "cosine"}, "decay needs schedule = plateau, exponential or step"),
        ({"patience": 3, "recipe": "fast"}, "patience needs schedule = plateau"),
        ({"keep_optimizer": True}, "keep_optimizer needs start_from"),
    ],
)
def test_a_setting_that_would_mean_nothing_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainConfig(**given)  # type: ignore[arg-type]


def test_what_means_nothing_is_named_and_may_stay_at_its_default() -> None:
    assert TrainConfig().inapplicable() == {"force_weight", "momentum", "step_size", "warmup"}
    assert TrainConfig(forces=True, optimizer="sgd", schedule="step").inapplicable() == {
        "patience",
        "threshold",
        "warmup",
    }
    assert TrainConfig(force_weight=0).force_weight == 0


@pytest.mark.parametrize("name", ["pass_aev", "pass_energy", "sum_levels"])
def test_links_between_levels_need_levels(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} needs multi_fidelity"):
        RunConfig(model={name: False})  # type: ignore[arg-type]
    levels = {"multi_fidelity": True, "low_fidelity": 0}
    assert getattr(RunConfig(data=levels, model={name: False}).model, name) is False  # type: ignore[arg-type]


def test_a_level_sees_something() -> None:
    with pytest.raises(ValidationError, match="pass_aev and pass_energy must not both be off"):
        RunConfig(model={"pass_aev": False, "pass_energy": False})  # type: ignore[arg-type]


def test_aevmod_computes_its_own_grids_alone() -> None:
    own = {"aev": {"zeta": 14.1, "radial_shifts": [1.0, 2.0]}}
    with pytest.raises(
        ValidationError, match=r"aev_backend aevmod and radial_shifts, zeta contradict each other: .*rule"
    ):
        RunConfig(data={"aev_backend": "aevmod"}, model=own)  # type: ignore[arg-type]
    assert RunConfig(data={"aev_backend": "aevmod"}, model={"aev": {"n_radial": 3, "zeta": 8.0}})  # type: ignore[arg-type]


def test_one_loss_has_no_weight_to_learn() -> None:
    with pytest.raises(ValidationError, match="learn_loss_weights needs forces or multi_fidelity"):
        RunConfig(training={"learn_loss_weights": True})  # type: ignore[arg-type]


def test_a_recipe_stands_in_for_what_is_not_given() -> None:
    fast = TrainConfig(recipe="fast")
    assert {name: getattr(fast, name) for name in RECIPES["fast"]} == RECIPES["fast"]
    assert fast.departures() == []
    assert TrainConfig(recipe="standard").model_dump() == TrainConfig().model_dump()
    own = TrainConfig(recipe="fast", epochs=7, learning_rate=0.5)
    assert (own.epochs, own.learning_rate, own.optimizer) == (7, 0.5, fast.optimizer)
    assert own.departures() == ["epochs", "learning_rate"]


@pytest.mark.parametrize(
    ("given", "left_out"),
    [
        ({"schedule": "ROP", "patience": 3}, "warmup"),
        ({"forces": False}, "force_weight"),
        ({"learn_loss_weights": True}, "force_weight"),
        ({"start_from": "model.safetensors", "keep_optimizer": True}, "learning_rate"),
    ],
)
def test_a_recipe_says_nothing_that_contradicts_what_is_given(given: dict[str, object], left_out: str) -> None:
    found = TrainConfig(recipe="fast", **given)  # type: ignore[arg-type]
    assert left_out in found.inapplicable() and left_out not in found.model_fields_set
    assert left_out not in found.departures()
    assert found.epochs == RECIPES["fast"]["epochs"]


def test_a_force_weight_of_ones_own_stays_where_it_is() -> None:
    assert TrainConfig(recipe="fast", force_weight=0.5).force_weight_end is None
    assert TrainConfig(recipe="fast", force_weight_end=0.5).force_weight == RECIPES["fast"]["force_weight"]
    assert TrainConfig(recipe="fast", force_weight=0.5).departures() == ["force_weight"]


def test_an_unknown_recipe_is_told() -> None:
    with pytest.raises(ValidationError, match="recipe"):
        TrainConfig(recipe="slow")  # type: ignore[arg-type]

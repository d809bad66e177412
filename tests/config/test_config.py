from __future__ import annotations

import pytest
from pydantic import ValidationError

from pykinml_func.config import RunConfig, TrainConfig


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
        ({"keep_optimizer": True}, "keep_optimizer needs start_from"),
    ],
)
def test_a_setting_that_would_mean_nothing_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainConfig(**given)  # type: ignore[arg-type]


def test_what_means_nothing_is_named_and_may_stay_at_its_default() -> None:
    assert TrainConfig().inapplicable() == {"force_weight", "momentum", "step_size"}
    assert TrainConfig(forces=True, optimizer="sgd", schedule="step").inapplicable() == {"patience", "threshold"}
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

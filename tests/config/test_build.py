from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from pykinml_func.config import RunConfig
from pykinml_func.config.build import build_config
from pykinml_func.errors import ConfigError

JARGON = re.compile(r"type=|https?://|pydantic|validation error|tuple|Input should|Field required|loc=", re.IGNORECASE)


def refusal(**given: Any) -> str:
    """The message that these settings are refused with."""
    with pytest.raises(ConfigError) as caught:
        build_config(given)
    assert not JARGON.search(str(caught.value)), caught.value
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"neurons": [4, 2, 1]}, ["activations", "4 for 3 layers"]),
        ({"neurons": [4, 2], "activations": "tanh,identity"}, ["end with 1", "4, 2"]),
        ({"neurons": [], "activations": []}, ["end with 1"]),
        ({"activations": "gauss,tanh,tanh,identity"}, ["activations", "'gaussian'", "'gauss'"]),
        ({"n_radial": 3, "radial_shifts": [1.0, 2.0]}, ["n_radial", "radial_shifts", "3 and 2", "leave one"]),
        ({"n_angular": 4, "angular_sections": [1.0]}, ["n_angular", "angular_sections", "4 and 1"]),
        ({"n_angular_radial": 1, "angular_shifts": [1.0, 2.0]}, ["n_angular_radial", "1 and 2"]),
        ({"n_radial": 0}, ["n_radial", "greater than 0", "0"]),
        ({"n_radial": 2.5}, ["n_radial", "whole number", "2.5"]),
        ({"n_radial": "many"}, ["n_radial", "whole number", "'many'"]),
        ({"radial_shifts": 3}, ["radial_shifts", "list", "3"]),
        ({"radial_cutoff": math.inf}, ["radial_cutoff", "finite", "inf"]),
        ({"learning_rate": math.nan}, ["learning_rate", "nan"]),
        ({"elements": "C,H,C"}, ["elements", "C, H, C"]),
        ({"elements": "C,Xx"}, ["elements", "Xx"]),
        ({"elements": "C,h"}, ["elements", "got h"]),
        ({"beta": 0}, ["beta", "greater than 0"]),
        ({"beta": 1.1}, ["beta", "less than or equal to 1", "1.1"]),
        ({"decay": 1}, ["decay", "less than 1"]),
        ({"epochs": "ten"}, ["epochs", "whole number", "'ten'"]),
        ({"seeds": [1]}, ["seeds", "2 values", "[1]"]),
        ({"seeds": "1,2,3"}, ["seeds", "2 values", "'3'"]),
        ({"seeds": "-1,2"}, ["seeds must be from 0 to 2**63 - 1, got -1, 2"]),
        ({"seeds": [0, 2**63]}, ["seeds", f"got 0, {2**63}"]),
        ({"n_radial": "16.5"}, ["n_radial", "whole number", "'16.5'"]),
        ({"n_angular": "2.5"}, ["n_angular", "whole number", "'2.5'"]),
        ({"aev_params": "4,2"}, ["aev_params", "3 values", "n_angular_radial", "'4,2'"]),
        ({"cuttoff_radius": 4.6}, ["cuttoff_radius", "2 values", "4.6"]),
        ({"force_path": "autograd"}, ["force_path", "'positions'", "'autograd'"]),
        ({"forces": "maybe"}, ["forces", "true or false", "'maybe'"]),
        ({"prepared": 3}, ["prepared", "path", "3"]),
        ({"neurons": 5}, ["neurons", "list", "5"]),
        ({"temperature": "cold"}, ["temperature", "a number", "'cold'"]),
    ],
)
def test_a_refusal_says_what_was_expected_and_what_came(given: dict[str, Any], said: list[str]) -> None:
    message = refusal(**given)
    for part in said:
        assert part in message


def test_every_fault_is_told_at_once() -> None:
    assert len(refusal(epochs=0, batch_size=-1, device=3).splitlines()) == 3


def refused(given: dict[str, Any], base: dict[str, Any] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        build_config(given, base)
    return str(caught.value)


CONTRADICTIONS = {
    "delta and levels": (
        {"multi_fid": True, "delta": True, "fidlevel_lf": 0},
        "delta and multi_fidelity (your multi_fid) contradict each other; leave one of them out",
    ),
    "delta without a level": (
        {"delta": True},
        "delta needs one level in low_fidelity, to be subtracted, got none; e.g. 0",
    ),
    "a level for nothing": (
        {"fidlevel_lf": 0},
        "low_fidelity (your fidlevel_lf) needs delta or multi_fidelity, got 0 with neither; add one, or leave it out",
    ),
    "a weight without forces": (
        {"fw": 0.2},
        "force_weight (your fw) needs forces, got force_weight = 0.2 without; add forces, or leave it out",
    ),
    "a weight that is learned": (
        {"floss": True, "fw": 0.2, "optimize_force_weight": True},
        "force_weight (your fw) and learn_loss_weights (your optimize_force_weight) contradict each other, got "
        "force_weight = 0.2; leave one of them out",
    ),
    "a weight to learn for one loss": (
        {"optimize_force_weight": True},
        "learn_loss_weights (your optimize_force_weight) needs forces or multi_fidelity, since one loss has nothing to "
        "be weighed against; add one of them, or leave it out",
    ),
    "momentum of Adam": (
        {"momentum": 0.9, "optimizer": "Adam"},
        "momentum needs optimizer = sgd, got momentum = 0.9 without; add optimizer = sgd, or leave it out",
    ),
    "patience of another schedule": (
        {"LR_patience": 9, "lrscheduler": "exp"},
        "patience (your LR_patience) needs schedule (your lrscheduler) = plateau, got patience = 9 without; add "
        "schedule = plateau, or leave it out",
    ),
    "a prepared set and its input": (
        {"pre_saved": True, "input_data_fname": ["a.db"]},
        "pre_saved and input (your input_data_fname) contradict each other: pre_saved reads the prepared set alone; "
        "leave one of them out",
    ),
    "loading nothing": (
        {"load_model": True},
        "load_model needs load_model_name (start_from), the model to start from, got none; add it, or leave load_model "
        "out",
    ),
    "not loading a model": (
        {"load_model": False, "load_model_name": "a.safetensors"},
        "load_model is off, and start_from (your load_model_name) contradicts it, got a.safetensors; leave one of them "
        "out",
    ),
    "not reading the split files": (
        {"read_trid": False, "trtsid_name": "tvt.txt", "tvt": "3,1,0"},
        "read_trid is off, and split_files (your trtsid_name) contradicts it; leave one of them out",
    ),
    "GPUs without ddp": ({"gpus": [1]}, "gpus needs ddp, got gpus 1 without; add ddp, or leave gpus out"),
    "GPUs with ddp off": ({"gpus": 1, "ddp": False}, "gpus needs ddp, got gpus 1 without; add ddp, or leave gpus out"),
    "two devices": (
        {"ddp": True, "gpus": 1, "device": "cpu"},
        "device contradicts gpus, got cpu and 1; leave one of them out",
    ),
    "two devices, one unsaid": (
        {"ddp": True, "device": "cpu"},
        "device contradicts ddp, got cpu and ddp on; leave one of them out",
    ),
    "other ranks than GPUs": (
        {"ddp": True, "gpus": "0,1", "ranks": 3},
        "ranks must be as many as the GPUs of device, got 3 and cuda:0,1; leave ranks out, or name more GPUs or none "
        "(device = cuda)",
    ),
    "several ranks on one GPU": (
        {"device": "cuda:1", "ranks": 2},
        "ranks must be as many as the GPUs of device, got 2 and cuda:1; leave ranks out, or name more GPUs or none "
        "(device = cuda)",
    ),
    "a GPU twice": ({"device": "cuda:1,1"}, "device must name each GPU once, got cuda:1,1"),
    "no ranks": ({"ranks": 0}, "ranks must be greater than 0, got 0"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_contradiction_names_both_sides_as_they_were_typed(case: str) -> None:
    given, said = CONTRADICTIONS[case]
    assert refused(given) == said


def test_switches_of_pykinml_become_settings() -> None:
    assert build_config({"ddp": True, "gpus": [2]}).training.device == "cuda:2"
    assert build_config({"ddp": True}).training.device == "cuda"
    assert build_config({"ddp": False, "device": "cuda:1"}).training.device == "cuda:1"
    assert build_config({"load_model": True, "load_model_name": ["a"]}).training.start_from == Path("a")
    assert build_config({"load_model": False}).training.start_from is None
    assert build_config({"read_trid": True, "trtsid_name": "a", "tvt": [3, 1, 0]}).data.split_files == ("a",)
    for name in ("read_trid", "write_tvtmsk"):
        assert build_config({name: True}) == build_config({name: False}) == RunConfig()


@pytest.mark.parametrize(
    ("given", "device", "ranks"),
    [
        ({}, "cpu", 1),
        ({"ranks": "2"}, "cpu", 2),
        ({"device": "cuda:0,1"}, "cuda:0,1", 2),
        ({"device": "cuda:0,1", "ranks": 2}, "cuda:0,1", 2),
        ({"device": "cuda", "ranks": 4}, "cuda", 4),
        ({"device": "cuda:3"}, "cuda:3", 1),
        ({"ddp": True, "gpus": "0,1,3"}, "cuda:0,1,3", 3),
        ({"ddp": True}, "cuda", 1),
        ({"ddp": True, "ranks": 2}, "cuda", 2),
        ({"ddp": False, "ranks": 2}, "cpu", 2),
    ],
)
def test_there_is_a_rank_for_each_gpu(given: dict[str, Any], device: str, ranks: int) -> None:
    training = build_config(given).training
    assert (training.device, training.ranks) == (device, ranks)


@pytest.mark.parametrize(
    ("typed", "device", "ranks"),
    [
        ({"device": "cuda:0,1,2"}, "cuda:0,1,2", 3),
        ({"device": "cuda:0"}, "cuda:0", 1),
        ({"ddp": True, "gpus": "1,2,3,4"}, "cuda:1,2,3,4", 4),
        ({"device": "cpu"}, "cpu", 2),
        ({"device": "cpu", "ranks": 1}, "cpu", 1),
        ({"device": "cuda", "ranks": 8}, "cuda", 8),
    ],
)
def test_a_run_goes_on_by_other_ranks(typed: dict[str, Any], device: str, ranks: int) -> None:
    """Its config.toml names devices and ranks both."""
    training = build_config(typed, {"device": "cuda:0,1", "ranks": 2}).training
    assert (training.device, training.ranks) == (device, ranks)


def test_more_ranks_than_the_files_gpus_are_refused() -> None:
    said = refused({"ranks": 4}, {"device": "cuda:0,1", "ranks": 2})
    assert said.startswith("ranks must be as many as the GPUs of device (in the file), got 4 and cuda:0,1; leave ranks")


def test_pykinmls_defaults_as_its_parser_gives_them() -> None:
    config = build_config(
        {
            "optimizer": ["Adam"],
            "lrscheduler": "rop",
            "LR_patience": 25.0,
            "temp": 300,
            "fidlevel_lf": 0,
            "delta": True,
            "fw": 0.0,
            "weight_decay": 0,
            "tvt": [36.0, 4.0, 0.0],
        }
    )
    training, data = config.training, config.data
    assert (training.optimizer, training.schedule, training.patience) == ("adam", "plateau", 25)
    assert (data.temperature, data.low_fidelity, data.split) == (300, (0,), (36, 4, 0))


@pytest.mark.parametrize(
    ("typed", "file", "expected"),
    [
        ({"optimizer": "Adam"}, {"optimizer": "sgd", "momentum": 0.9, "epochs": 7}, {"optimizer": "adam", "epochs": 7}),
        (
            {"lrscheduler": "step", "stepsize": 7},
            {"schedule": "rop", "LR_patience": 9, "LR_threshold": 0.1, "decay": 0.3},
            {"schedule": "step", "step_size": 7, "decay": 0.3},
        ),
        ({"floss": False}, {"forces": True, "force_weight": 0.4}, {}),
        (
            {"forces": False},
            {"forces": True, "multi_fid": True, "fidlevel_lf": 0, "learn_loss_weights": True},
            {"multi_fidelity": True, "low_fidelity": 0, "learn_loss_weights": True},
        ),
        ({"fw": 0.2}, {"forces": True, "learn_loss_weights": True}, {"forces": True, "force_weight": 0.2}),
        (
            {"optimize_force_weight": True},
            {"forces": True, "force_weight": 0.2},
            {"forces": True, "learn_loss_weights": True},
        ),
        ({"multi_fid": True}, {"delta": True, "fidlevel_lf": 0}, {"multi_fidelity": True, "low_fidelity": 0}),
        ({"delta": False}, {"delta": True, "fidlevel_lf": 0}, {}),
        (
            {"multi_fid": False},
            {"multi_fid": True, "fidlevel_lf": 0, "dscr": False, "optimize_force_weight": True},
            {},
        ),
        ({"pre_saved": True}, {"input": ["a.db"], "pre_saved": False}, {"pre_saved": True}),
        ({"input": ["a.db"]}, {"pre_saved": True}, {"input": ["a.db"]}),
        ({"ddp": True, "gpus": "1"}, {"device": "cpu"}, {"device": "cuda:1"}),
        ({"device": "cpu"}, {"ddp": True, "gpus": [1]}, {"device": "cpu"}),
        ({"load_model": False}, {"load_model_name": "a", "keep_optimizer": True}, {}),
        ({"start_from": ""}, {"load_model": True, "load_model_name": "a"}, {}),
        ({"n_radial": 4}, {"radial_shifts": [1.0, 2.0]}, {"n_radial": 4}),
        ({"radial_shifts": "1.0,2.0"}, {"n_radial": 16}, {"radial_shifts": [1.0, 2.0]}),
        ({"nameset": "", "temp": "", "input": [""]}, {"nameset": ["ts%"], "temp": 300, "input": ["a.db"]}, {}),
    ],
)
def test_what_is_typed_wins_over_the_file_also_between_alternatives(
    typed: dict[str, Any], file: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert build_config(typed, file) == build_config(expected)


@pytest.mark.parametrize(
    ("typed", "file", "said"),
    [
        ({"epochs": 4}, {"momentum": 0.9}, "momentum (in the file) needs optimizer = sgd"),
        ({"momentum": 0.9}, {"optimizer": "Adam"}, "momentum needs optimizer (in the file) = sgd"),
        ({"fw": 0.4}, {"floss": False}, "force_weight (your fw) needs forces (your floss, in the file)"),
        ({"neurons": "4,1"}, {"my_actfn": ["tanh"] * 3}, "activations (your my_actfn, in the file) must be one for"),
        ({"split": "0.5,0.5"}, {"split_files": ["a"]}, "split must be counts when split_files (in the file) is given"),
        ({"epochs": 4}, {"batch_size": "ten"}, "batch_size (in the file) must be a whole number, got 'ten'"),
        (
            {"epochs": 4},
            {"delta": True, "multi_fid": True},
            "delta (in the file) and multi_fidelity (your multi_fid, in",
        ),
    ],
)
def test_a_refusal_tells_what_stands_in_the_file(typed: dict[str, Any], file: dict[str, Any], said: str) -> None:
    assert refused(typed, file).startswith(said)


def test_what_is_typed_or_in_the_file_wins_over_a_recipe() -> None:
    training = build_config({"recipe": "fast", "epochs": "7"}, {"learning_rate": 0.5, "schedule": "exp"}).training
    assert (training.epochs, training.learning_rate, training.schedule) == (7, 0.5, "exponential")
    assert training.optimizer == "soap" and training.forces


def test_an_ensemble_is_typed_beside_a_recipe() -> None:
    """As text, which the recipe sees before it is read as a number."""
    training = build_config({"recipe": "fast", "ensemble": "8", "ensemble_data": "folds", "seeds": "0,3"}).training
    assert (training.ensemble, training.ensemble_data, training.optimizer) == (8, "folds", "soap")
    assert training.member_seeds == tuple(range(3, 11))
    assert "ensemble_data needs ensemble = 2 or more" in refusal(recipe="fast", ensemble="1", ensemble_data="folds")


def test_a_typed_recipe_leaves_out_what_its_values_make_meaningless_in_the_file() -> None:
    training = build_config({"recipe": "fast"}, {"patience": 3}).training
    assert training.schedule == "cosine" and "patience" not in training.model_fields_set
    assert "patience needs schedule = plateau" in refusal(recipe="fast", patience=3)

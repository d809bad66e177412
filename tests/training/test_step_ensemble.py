from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from pykinml_func.config import ModelConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.potential.energy import init_params
from pykinml_func.training.compilation import RecordedStep
from pykinml_func.training.optimizers import Optimizer, adam, adamw, sgd, soap
from pykinml_func.training.step import (
    Objective,
    build_eval_step,
    build_mean_eval_step,
    build_predict_step,
    build_train_step,
    init_state,
)
from pykinml_func.types import Structures, TrainState

E = 3
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adam": adam, "adamw": adamw, "sgd": sgd, "soap": soap}


def packer_of(source: Source, members: int = 5) -> Packer:
    return Packer(source, np.arange(members), 2, torch.float64, torch.device("cpu"))


@pytest.fixture(params=["aevs", "jacobians", "positions"])
def packer(request: pytest.FixtureRequest, labelled: Structures, make_source: Callable[..., Source]) -> Packer:
    source = make_source(labelled, request.getfixturevalue("model_config").aev, request.param)
    return packer_of(source if request.param != "aevs" else source._replace(forces=None, has_forces=None))


def states_of(config: ModelConfig, optimizer: Optimizer, objective: Objective) -> list[TrainState]:
    drawn = [init_params(config, torch.Generator().manual_seed(seed)) for seed in range(E)]
    return [init_state(params, optimizer, objective, 1e-2, ema=0.9) for params in drawn]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_member_takes_its_own_step(model_config: ModelConfig, packer: Packer, name: str) -> None:
    """On its own batches; recorded at the first call, when its parameters have not been through an optimizer yet."""
    forces = packer.source.forces is not None
    optimizer, objective = OPTIMIZERS[name](), Objective(forces, learned=forces)
    alone = states_of(model_config, optimizer, objective)
    together = tree_map(lambda *leaves: torch.stack(leaves), *alone)
    step = RecordedStep(build_train_step(model_config, optimizer, objective, 0.9, E), eager_calls=0)
    one = build_train_step(model_config, optimizer, objective, 0.9)
    for turn in range(12):  # past SOAP's second turn of its bases
        indices = [np.array([(turn + member) % 5, (turn + 2 * member + 1) % 5]) for member in range(E)]
        together, sums = step(together, packer.pack_members(indices, indices))
        steps = [one(state, packer.pack(index)) for state, index in zip(alone, indices, strict=True)]
        alone = [state for state, _ in steps]
        expected = [
            leaf for leaf in zip(*(tree_leaves(found) for _, found in steps), strict=True) if leaf[0] is not None
        ]
        for mine, theirs in zip((leaf for leaf in tree_leaves(sums) if leaf is not None), expected, strict=True):
            torch.testing.assert_close(mine, torch.stack(theirs), rtol=1e-10, atol=1e-12)
    for mine, *theirs in zip(*map(tree_leaves, (together, *alone)), strict=True):
        torch.testing.assert_close(mine, torch.stack(theirs), rtol=1e-9, atol=1e-11)


def test_members_take_their_steps_on_one_batch(model_config: ModelConfig, packer: Packer) -> None:
    """As on three copies of it."""
    forces = packer.source.forces is not None
    objective = Objective(forces, learned=forces)
    state = tree_map(lambda *leaves: torch.stack(leaves), *states_of(model_config, adam(), objective))
    step, index = build_train_step(model_config, adam(), objective, 0.9, E), np.array([0, 3])
    shared, copied = step(state, packer.pack(index)), step(state, packer.pack_members([index] * E, [index] * E))
    for mine, theirs in zip(tree_leaves(shared), tree_leaves(copied), strict=True):
        assert mine is theirs is None or torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12)


def test_members_are_judged_on_one_batch(model_config: ModelConfig, packer: Packer) -> None:
    forces = packer.source.forces is not None
    alone = [state.params for state in states_of(model_config, adam(), Objective(forces))]
    together = tree_map(lambda *leaves: torch.stack(leaves), *alone)
    batch = packer.pack(np.array([0, 3]))
    one, all_of_them = (build_eval_step(model_config, forces, n_members) for n_members in (1, E))
    for place, params in enumerate(alone):
        found, expected = all_of_them(together, batch), one(params, batch)
        assert (found.force is None) == (expected.force is None) == (not forces)
        for mine, theirs in zip(tree_leaves(found), tree_leaves(expected), strict=True):
            assert mine is theirs is None or torch.allclose(mine[place], theirs, rtol=1e-10)


def test_the_error_of_the_mean_is_no_mean_of_errors(model_config: ModelConfig, packer: Packer) -> None:
    forces = packer.source.forces is not None
    alone = [state.params for state in states_of(model_config, adam(), Objective(forces))]
    together = tree_map(lambda *leaves: torch.stack(leaves), *alone)
    batch = packer.pack(np.array([0, 3]))
    energies = torch.stack([build_predict_step(model_config, forces)(params, batch)[0] for params in alone]).mean(dim=0)
    found = build_mean_eval_step(model_config, forces, E)(together, batch).energy
    expected = ((energies - batch.energies) ** 2 * batch.energy_mask).sum(dim=0)
    torch.testing.assert_close(found.squared, expected, rtol=1e-10, atol=0)

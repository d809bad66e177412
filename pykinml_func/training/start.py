"""What training starts from: fresh networks, or those of a model or checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pykinml_func.config import ModelConfig, RunConfig, TrainConfig
from pykinml_func.errors import ConfigError
from pykinml_func.potential.energy import init_params
from pykinml_func.potential.ensemble import as_params, member_of, n_members_of
from pykinml_func.training.checkpoint import Checkpoint, load_checkpoint
from pykinml_func.training.model_file import load_ensemble
from pykinml_func.training.optimizers import build_optimizer
from pykinml_func.training.ranks import Ranks
from pykinml_func.training.schedules import ScheduleState, first_schedule, force_weight_at
from pykinml_func.training.step import build_objective, init_state
from pykinml_func.types import Ensemble, Params, TrainState


class Start(NamedTuple):
    """The model that training starts from, as its file has it."""

    model_config: ModelConfig
    params: Params
    """of several members with a leading axis"""
    checkpoint: Checkpoint | None
    """where the optimizer's state is kept"""

    @property
    def self_energies(self) -> Tensor:
        """(L,S) eV, which all members share."""
        return self.of_member(0).params.self_energies

    def of_member(self, place: int) -> Start:
        """What one member of an ensemble starts from: its own, or the one model that all start from."""
        if n_members_of(self.params) == 1:
            return self
        kept = None if self.checkpoint is None else self.checkpoint.of_member(place)
        return Start(self.model_config, member_of(self.params, place), kept)


def read_start(config: RunConfig, path: Path) -> Start:
    """The model or checkpoint at `path`, if it is what the settings ask for. Raises ConfigError or ModelError."""
    loaded = load_ensemble(path)
    model, params = loaded.model_config, as_params(loaded.members)
    for wanted, found, names in (
        (config.model, model, config.model.model_fields_set - {"aev"}),
        (config.model.aev, model.aev, config.model.aev.given),
    ):
        for name in sorted(names):
            if getattr(wanted, name) != getattr(found, name):
                raise ConfigError(
                    f"{name} must be that of the model that training starts from, got {getattr(wanted, name)}, and "
                    f"{path} has {getattr(found, name)}; leave {name} out, or train a new model"
                )
    if model.n_levels != len(config.data.fidelities):
        raise ConfigError(
            f"{path} predicts {model.n_levels} fidelity levels, and this run asks for {len(config.data.fidelities)}; "
            "a model cannot gain or lose levels: ask for as many, or train a new one"
        )
    _check_members(config, path, loaded)
    if not config.training.keep_optimizer:
        return Start(model, params, None)
    n_tasks = build_objective(config.training).n_tasks(model.n_levels)
    optimizer = build_optimizer(config.training)
    return Start(model, params, load_checkpoint(path, optimizer, config.training.optimizer, n_tasks))


def _check_members(config: RunConfig, path: Path, loaded: Ensemble) -> None:
    training, found = config.training, loaded.n_members
    given = "ensemble" in training.model_fields_set and training.ensemble != found
    if given and (found > 1 or training.keep_optimizer):
        raise ConfigError(
            f"ensemble must be as many as the members that training starts from, got {training.ensemble}, and {path} "
            f"has {found}; leave ensemble out, or start from another file"
        )
    if not (loaded.members.self_energies == loaded.members.self_energies[0]).all():
        raise ConfigError(
            f"the members that training starts from must share their self energies, and those of {path} do not; train "
            "them on one by one, after `pykinml split`"
        )


def first_state(
    config: RunConfig, self_energies: Tensor, start: Start | None, ranks: Ranks, resumed: bool = False
) -> tuple[TrainState, tuple[ScheduleState, ...]]:
    """The state before the first step, in the precision of the run, and each member's schedule.

    self_energies: (L,S) eV.
    Of a checkpoint go on what the optimizer left, and the networks' running mean, which is its model; where a run is
    resumed, its schedule too, as it was.
    """
    training = config.training
    found = []
    for place, seed in enumerate(training.member_seeds):
        own = training.model_copy(update={"seeds": (training.seeds[0], seed)})
        its = None if start is None else start.of_member(place)
        found.append(_first_state(config.model, own, self_energies, its, ranks, resumed))
    states, schedules = zip(*found, strict=True)
    if len(states) == 1:
        return states[0], schedules
    return tree_map(lambda *leaves: torch.stack(leaves), *states), schedules


def _first_state(
    model_config: ModelConfig,
    training: TrainConfig,
    self_energies: Tensor,
    start: Start | None,
    ranks: Ranks,
    resumed: bool,
) -> tuple[TrainState, ScheduleState]:
    """`first_state` of one model."""
    dtype = getattr(torch, training.precision)

    def placed(tree: Any) -> Any:
        return tree_map(lambda tensor: tensor.to(ranks.device, dtype), tree)

    generator = torch.Generator().manual_seed(training.seeds[1])
    drawn = init_params(model_config, generator) if start is None else start.params
    params = Params(placed(drawn.networks), self_energies.to(ranks.device))
    kept = None if start is None else start.checkpoint
    if kept is not None and resumed:
        schedule = kept.schedules[0]
    else:
        rate = training.learning_rate * (ranks.size if training.scale_lr else 1)
        schedule = first_schedule(
            training.model_copy(update={"learning_rate": rate}), None if kept is None else kept.schedules[0]
        )
    optimizer, objective = build_optimizer(training), build_objective(training)
    objective = objective._replace(force_weight=force_weight_at(training, schedule))
    state = init_state(params, optimizer, objective, schedule.learning_rate, training.ema)
    if kept is None:
        return state, schedule
    if kept.last:
        state = state._replace(params=params._replace(networks=placed(kept.last)))
    memory = kept.optimizer._replace(step=kept.optimizer.step.to(ranks.device), moments=placed(kept.optimizer.moments))
    return state._replace(log_variances=placed(kept.log_variances), optimizer=memory), schedule

"""The epoch loop and the state that it carries.

# L fidelity levels, k batches of an epoch that are done, E members of an ensemble
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from pykinml_func.config import RunConfig
from pykinml_func.data.loader import Loader
from pykinml_func.errors import PyKinMLError
from pykinml_func.files import write_atomically
from pykinml_func.potential.ensemble import as_members
from pykinml_func.training.batch_sums import BatchSums
from pykinml_func.training.checkpoint import Progress, save_checkpoint
from pykinml_func.training.compilation import RecordedStep
from pykinml_func.training.metrics import (
    add_stacked,
    level_prefixes,
    member_record,
    member_rmses,
    summary,
    unstack_sums,
)
from pykinml_func.training.model_file import save_ensemble
from pykinml_func.training.optimizers import build_optimizer
from pykinml_func.training.ranks import Ranks
from pykinml_func.training.schedules import ScheduleState, build_schedule, force_weight_at
from pykinml_func.training.setup import make_training_loader
from pykinml_func.training.step import (
    EvalStep,
    TrainStep,
    build_eval_step,
    build_gradients,
    build_mean_eval_step,
    build_objective,
    build_train_step,
    build_update,
)
from pykinml_func.types import Batch, Calibration, Domain, Ensemble, ErrorSums, Params, StepSums, TrainState

_KEPT_STRUCTURES = 20_000
"""Validation structures up to which their batches are packed once and kept."""


class StoppedError(Exception):
    """A signal asked the run to stop."""

    def __init__(self, number: int) -> None:
        """number: of the signal."""
        super().__init__(number)
        self.number = number


class Loop:
    """Trains epoch by epoch and keeps the best parameters: those of the least validation RMSE of the energies, for each
    member of an ensemble its own.
    """

    def __init__(
        self,
        config: RunConfig,
        loaders: dict[str, Loader],
        state: TrainState,
        schedules: Sequence[ScheduleState],
        compiled: bool,
        ranks: Ranks,
        asked_to_stop: Callable[[], int] = lambda: 0,
    ) -> None:
        """state, schedules (of each member): before the first epoch; compiled: whether steps run under torch.compile;
        asked_to_stop: the signal that this rank got.
        """
        training = config.training
        self.config, self.loaders, self.schedules, self.ranks = config, loaders, tuple(schedules), ranks
        self._batches, self._n_members = make_training_loader(config, loaders["train"]), training.ensemble
        self._asked_to_stop = asked_to_stop
        self._recorded: list[RecordedStep] = []
        self._evaluate = self._record(build_eval_step(config.model, training.forces, self._n_members), compiled)
        self._advance = build_schedule(training)
        self._like, self._is_cut = state, training.fsdp and ranks.size > 1
        self._step, self._state = self._step_of(compiled)
        self.best, self._best_rmses = state.evaluated, [math.inf] * self._n_members
        self.history: list[dict[str, float]] = []
        self._sums = BatchSums(self._batches.n_batches)
        valid = loaders["valid"]
        self._kept = list(valid.epoch(0)) if len(valid.packer.members) <= _KEPT_STRUCTURES else None

    def _record(self, step: Callable[..., object], compiled: bool) -> RecordedStep:
        self._recorded.append(RecordedStep(step, compiled))
        return self._recorded[-1]

    def _step_of(self, compiled: bool) -> tuple[TrainStep, TrainState]:
        """The training step of one rank or of several, and the first state as that step takes it."""
        config, training, state = self.config, self.config.training, self._like
        optimizer, objective = build_optimizer(training), build_objective(training)
        if self.ranks.size == 1:
            step = build_train_step(config.model, optimizer, objective, training.ema, self._n_members)
            return self._record(step, compiled), state
        from pykinml_func.training import distributed  # takes a second to import

        gradients_of = self._record(build_gradients(config.model, objective, self._n_members), compiled)
        updated = self._record(build_update(optimizer, training.ema, self._n_members), compiled)
        if self._is_cut:
            step = distributed.build_fsdp_step(gradients_of, updated, state, self.ranks)
            return step, distributed.shard(state, self.ranks)
        return distributed.build_ddp_step(gradients_of, updated, state, self.ranks), state

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    @property
    def shapes(self) -> int:
        """Shapes of batches that were recorded."""
        return sum(step.shapes for step in self._recorded)

    @property
    def state(self) -> TrainState:
        """The whole state; where each rank has a part of it, all of them must ask at once."""
        if not self._is_cut:
            return self._state
        from pykinml_func.training import distributed

        return distributed.unshard(self._state, self._like, self.ranks)

    def go_on(self, progress: Progress, history: list[dict[str, float]]) -> None:
        """Take up a run where it was, the state of which was given; history: a record of each epoch done."""
        self.history, self.best = history, progress.best
        rmses = [member_rmses(record) for record in history]
        self._best_rmses = [min(column) for column in zip(*rmses, strict=True)] if rmses else self._best_rmses
        if progress.sums is not None:
            sums = progress.sums
            if not self.ranks.is_first:  # they are of all ranks
                sums = tree_map_only(Tensor, torch.zeros_like, sums)
            for own in unstack_sums(sums):
                self._sums.append(own)

    def run_epoch(self) -> dict[str, float]:
        """Train on the batches that are left of an epoch, validate, adapt the learning rate. Returns its record.

        Raises StoppedError between two batches where a signal asks for it, and PyKinMLError where training diverges.
        """
        started = time.perf_counter()
        for batch in self._unless_stopped(self._batches.epoch(self.epoch, len(self._sums))):
            self._state, sums = self._step(self._state, batch)
            self._sums.append(sums)
        state = self.state
        train = self._summaries(self._total(add_stacked(self._sums.stacked)))
        valid = self._summaries(self._total(self._validated(state.evaluated)))
        rmses = [found["energy_rmse"] for found in valid]
        self._check_finite(rmses, [found["energy_rmse"] for found in train])
        self._keep_best(state.evaluated, rmses)
        record = {"epoch": self.epoch + 1, "learning_rate": fmean(each.learning_rate for each in self.schedules)}
        record |= {
            f"{part}_{name}": fmean(each[name] for each in found)
            for part, found in (("train", train), ("valid", valid))
            for name in found[0]
        }
        record |= member_record(rmses)
        record |= self._loss_weights(state)
        record["seconds"] = time.perf_counter() - started
        self._advance_schedules(rmses)
        self._sums = BatchSums(len(self._sums))
        self.history.append(record)
        return record

    def _summaries(self, sums: StepSums) -> list[dict[str, float]]:
        """`metrics.summary` of each member."""
        each = [sums] if self._n_members == 1 else unstack_sums(sums)
        return [summary(own, self.config.model.fidelities) for own in each]

    def _check_finite(self, valid: Sequence[float], train: Sequence[float]) -> None:
        for place, (schedule, *rmses) in enumerate(zip(self.schedules, valid, train, strict=True)):
            if not all(map(math.isfinite, rmses)):
                of_whom = f" of member {place}" if self._n_members > 1 else ""
                raise PyKinMLError(
                    f"training diverged in epoch {self.epoch + 1}: the errors{of_whom} are no longer finite; lower "
                    f"learning_rate ({schedule.learning_rate:g} now)"
                )

    def _keep_best(self, params: Params, rmses: Sequence[float]) -> None:
        """Keep the parameters of each member that is better than before."""
        better = [new < old for new, old in zip(rmses, self._best_rmses, strict=True)]
        if all(better):
            self.best = params
        elif any(better):
            chosen = torch.tensor(better, device=params.self_energies.device)
            self.best = tree_map(
                lambda new, old: torch.where(chosen.view(-1, *[1] * (new.ndim - 1)), new, old), params, self.best
            )
        self._best_rmses = [min(pair) for pair in zip(rmses, self._best_rmses, strict=True)]

    def _advance_schedules(self, rmses: Sequence[float]) -> None:
        """Adapt the learning rate and the force weight of each member to its validation RMSE."""
        self.schedules = tuple(self._advance(*pair) for pair in zip(self.schedules, rmses, strict=True))
        rates = [each.learning_rate for each in self.schedules]
        weights = [force_weight_at(self.config.training, each) for each in self.schedules]
        state = self._state
        rate, weight = (
            torch.tensor(values, dtype=old.dtype, device=old.device).view_as(old)
            for values, old in ((rates, state.learning_rate), (weights, state.force_weight))
        )
        self._state = state._replace(learning_rate=rate, force_weight=weight)

    def _unless_stopped(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, as long as no rank was asked to stop."""
        for batch in batches:
            number = self.ranks.signal_of_any(self._asked_to_stop())
            if number:
                raise StoppedError(number)
            yield batch

    def _validated(self, params: Params) -> StepSums:
        batches = iter(self._kept) if self._kept is not None else self.loaders["valid"].epoch(0)
        return self._evaluated(params, "valid", self._unless_stopped(batches))

    def _evaluated(self, params: Params, part: str, batches: Iterator[Batch]) -> StepSums:
        return self._summed(self._evaluate, params, part, batches)

    def _summed(self, evaluate: EvalStep, params: Params, part: str, batches: Iterator[Batch]) -> StepSums:
        found = BatchSums(self.loaders[part].n_batches)
        for batch in batches:
            found.append(evaluate(params, batch))
        return add_stacked(found.stacked)

    def errors(self, part: str) -> dict[str, float]:
        """The errors of the best parameters on a part of the split; of an ensemble, those of its mean."""
        evaluate: EvalStep = self._evaluate
        if self._n_members > 1:
            evaluate = build_mean_eval_step(self.config.model, self.config.training.forces, self._n_members)
        sums = self._summed(evaluate, self.best, part, self.loaders[part].epoch(0))
        return summary(self._total(sums), self.config.model.fidelities)

    def _total(self, sums: StepSums) -> StepSums:
        """The sums over all ranks. sums: of any number of batches."""

        def together(errors: ErrorSums) -> ErrorSums:
            added = self.ranks.total(torch.stack([errors.absolute, errors.squared, errors.number]))
            return ErrorSums(added[0], added[1], self.ranks.largest(errors.largest), added[2])

        return StepSums(together(sums.energy), None if sums.force is None else together(sums.force))

    def _loss_weights(self, state: TrainState) -> dict[str, float]:
        """exp(-s) of each task, where the weights are learned."""
        prefixes = level_prefixes(self.config.model.fidelities)
        names = [f"{prefix}{kind}" for kind in ("energy", "force") for prefix in prefixes]
        weights = torch.exp(-state.log_variances).view(self._n_members, -1).mean(dim=0).tolist()
        return {f"{name}_loss_weight": weight for name, weight in zip(names, weights, strict=False)}

    def save(self, directory: Path, calibration: Calibration | None = None, domain: Domain | None = None) -> None:
        """Write the best model, where an epoch is done, and the metrics. calibration, domain: once they are known."""
        if not self.ranks.is_first:
            return
        if self.history:
            ensemble = Ensemble(self.config.model, as_members(self.best), calibration, domain)
            save_ensemble(directory / "model.safetensors", ensemble)
        text = "".join(json.dumps(record) + "\n" for record in self.history)
        write_atomically(directory / "metrics.jsonl", lambda temporary: temporary.write_text(text))

    def save_checkpoint(self, directory: Path, data: str) -> None:
        """Write all that it takes to go on. data: what the run trains on, see `resume.fingerprint`."""
        sums = self._total(self._sums.stacked) if self._sums else None
        state = self.state
        if not self.ranks.is_first:
            return
        progress = Progress(self.epoch, len(self._sums), data, self.best, sums)
        save_checkpoint(directory, self.config.model, state, self.schedules, self.config.training.optimizer, progress)

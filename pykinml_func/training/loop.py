"""The epoch loop and the state that it carries."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import torch

from pykinml_func.config import RunConfig
from pykinml_func.data.loader import Loader
from pykinml_func.errors import PyKinMLError
from pykinml_func.files import write_atomically
from pykinml_func.training.checkpoint import save_checkpoint, save_model
from pykinml_func.training.compilation import RecordedStep
from pykinml_func.training.metrics import add_sums, level_prefixes, summary
from pykinml_func.training.optimizers import build_optimizer
from pykinml_func.training.schedules import ScheduleState, build_schedule, force_weight_at
from pykinml_func.training.step import build_eval_step, build_objective, build_train_step
from pykinml_func.types import TrainState


class Loop:
    """Trains epoch by epoch and keeps the best parameters: those of the least validation RMSE of the energies."""

    def __init__(
        self,
        config: RunConfig,
        loaders: dict[str, Loader],
        state: TrainState,
        schedule: ScheduleState,
        compiled: bool,
    ) -> None:
        """state, schedule: before the first epoch; compiled: whether steps run under torch.compile."""
        training = config.training
        self.config, self.loaders, self.state, self.schedule = config, loaders, state, schedule
        step = build_train_step(config.model, build_optimizer(training), build_objective(training), training.ema)
        self._step = RecordedStep(step, compiled)
        self._evaluate = RecordedStep(build_eval_step(config.model, training.forces), compiled)
        self._advance = build_schedule(training)
        self.best, self._best_rmse = state.evaluated, math.inf
        self.history: list[dict[str, float]] = []
        self._validation = list(loaders["valid"].epoch(0))

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    @property
    def shapes(self) -> int:
        """Shapes of batches that were recorded."""
        return self._step.shapes + self._evaluate.shapes

    def run_epoch(self) -> dict[str, float]:
        """Train on every batch once, validate, adapt the learning rate. Returns the epoch's record.

        The loop's state changes at the end alone, so that an interrupted epoch leaves that of the one before.
        """
        started, state, sums, levels = time.perf_counter(), self.state, [], self.config.model.fidelities
        for batch in self.loaders["train"].epoch(self.epoch):
            state, step_sums = self._step(state, batch)
            sums.append(step_sums)
        train = summary(add_sums(sums), levels)
        valid = summary(add_sums(self._evaluate(state.evaluated, batch) for batch in self._validation), levels)
        rmse = valid["energy_rmse"]
        if not math.isfinite(rmse) or not math.isfinite(train["energy_rmse"]):
            raise PyKinMLError(
                f"training diverged in epoch {self.epoch + 1}: the errors are no longer finite; lower learning_rate "
                f"({self.schedule.learning_rate:g} now)"
            )
        if rmse < self._best_rmse:
            self.best, self._best_rmse = state.evaluated, rmse
        record = {"epoch": self.epoch + 1, "learning_rate": self.schedule.learning_rate}
        record |= {
            f"{part}_{name}": value
            for part, found in (("train", train), ("valid", valid))
            for name, value in found.items()
        }
        record |= self._loss_weights(state)
        record["seconds"] = time.perf_counter() - started
        self.schedule = self._advance(self.schedule, rmse)
        rate = torch.full_like(state.learning_rate, self.schedule.learning_rate)
        weight = torch.full_like(state.force_weight, force_weight_at(self.config.training, self.schedule))
        self.state = state._replace(learning_rate=rate, force_weight=weight)
        self.history.append(record)
        return record

    def _loss_weights(self, state: TrainState) -> dict[str, float]:
        """exp(-s) of each task, where the weights are learned."""
        prefixes = level_prefixes(self.config.model.fidelities)
        names = [f"{prefix}{kind}" for kind in ("energy", "force") for prefix in prefixes]
        weights = torch.exp(-state.log_variances).tolist()
        return {f"{name}_loss_weight": weight for name, weight in zip(names, weights, strict=False)}

    def save(self, directory: Path) -> None:
        """Write the best model and the metrics."""
        save_model(directory / "model.safetensors", self.config.model, self.best)
        text = "".join(json.dumps(record) + "\n" for record in self.history)
        write_atomically(directory / "metrics.jsonl", lambda temporary: temporary.write_text(text))

    def save_checkpoint(self, directory: Path) -> None:
        """Write the state after the last epoch."""
        path = directory / "checkpoints" / f"epoch_{self.epoch:05d}.safetensors"
        save_checkpoint(path, self.config.model, self.state, self.schedule, self.config.training.optimizer)

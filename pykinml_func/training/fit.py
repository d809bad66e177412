"""The whole of a training run: data, split, self energies, networks, the epoch loop, the run directory."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import torch

from pykinml_func.config import RunConfig
from pykinml_func.config.toml import write_toml
from pykinml_func.data.batching import Packer
from pykinml_func.data.loader import Loader
from pykinml_func.data.prepared import Contents, PreparedSet, complete, discard
from pykinml_func.data.splits import write_split
from pykinml_func.errors import ConfigError, PyKinMLError
from pykinml_func.threads import using_threads
from pykinml_func.training.calibration import calibrate
from pykinml_func.training.compilation import check_compiler, repays_compilation
from pykinml_func.training.domain import fit_domain
from pykinml_func.training.loop import Loop, StoppedError
from pykinml_func.training.ranks import Ranks, joined
from pykinml_func.training.reporter import Predictions, Reporter, RunResult, Setup, SilentReporter
from pykinml_func.training.resume import Resumed, check_data, fingerprint, read_resumed
from pykinml_func.training.run_directory import claimed, clear
from pykinml_func.training.setup import RunData, make_loaders, open_run, run_data
from pykinml_func.training.signals import StopSignals, heard_signals
from pykinml_func.training.start import Start, first_state
from pykinml_func.training.step import build_predict_step
from pykinml_func.types import Calibration, Domain, Params

_SMALL_BATCH = 2**18
"""Numbers in a batch's AEVs below which training to energies gains a tenth by a second thread, and training to forces a
third (50 structures of C5H5: 2**17). Where other work makes threads wait for each other, both lose more than that.
"""

_FEW_THREADS = 4
"""For small batches of force training."""

_SHOWN_STRUCTURES = 10_000
"""Of a part of the split, evenly spread, whose predictions are kept for figures."""


def prepare(config: RunConfig, reporter: Reporter) -> PreparedSet:
    """Open or make the prepared set that training with `config` needs. Raises ConfigError or DataError."""
    started = time.perf_counter()
    prepared, config, _ = open_run(config, reporter.featurizing)
    _complete(prepared, config, reporter, started)
    return prepared


def _complete(prepared: PreparedSet, config: RunConfig, reporter: Reporter, started: float) -> None:
    """Compute the AEVs and Jacobians that are needed and not there yet. started: when the set was asked for."""
    contents: Contents = "aevs"
    if config.training.forces:
        contents = "jacobians" if config.training.force_path == "jacobian" else "structures"
    complete(prepared, contents, reporter.featurizing)
    reporter.prepared(prepared, time.perf_counter() - started)


def fit(config: RunConfig, reporter: Reporter, overwrite: bool = False, resume: bool = False) -> RunResult:
    """Train as `config` says and write the run directory `config.training.output`.

    The model of the epoch with the least validation RMSE of the highest level's energies is kept. Raises ConfigError,
    DataError or ModelError before AEVs are computed for what cannot be used, PyKinMLError where training diverges.
    Ctrl-C, SIGTERM, SIGUSR1 and divergence keep what was trained so far. Where training starts from a model, that one
    does not compete: trained on to forces, say, a model may be better with a larger error of the energies.

    resume: go on with the run that is there, from its last checkpoint. Under torchrun the ranks train together, and
    the first of them alone prints and writes.
    """
    check_compiler(config.training.compile)
    _check_output(config)
    with joined(config.training.device, config.training.ranks) as ranks:
        if ranks.is_first:
            with claimed(config.training.output, overwrite or resume):
                return _fit(config, reporter, ranks, resume)
        return _fit(config, SilentReporter(), ranks, resume)


def _fit(config: RunConfig, reporter: Reporter, ranks: Ranks, resume: bool) -> RunResult:
    """One rank's part of a run."""
    with ranks.first_rank_first("data are prepared"):
        started = time.perf_counter()
        resumed = read_resumed(config) if resume else None
        prepared, config, start = open_run(config, reporter.featurizing, None if resumed is None else resumed.start)
        try:
            data = run_data(config, prepared, start)
            of_data = fingerprint(prepared, data.split)
            if resumed is not None:
                check_data(resumed, of_data, config.training.output)
        except PyKinMLError:
            discard(prepared)
            raise
        _complete(prepared, config, reporter, started)
    training, loaders = config.training, make_loaders(config, data, prepared, ranks)
    batch_atoms = float(np.diff(data.source.offsets)[data.split.train].mean() * loaders["train"].packer.batch_size)
    batch_atoms *= training.ensemble
    small = batch_atoms / ranks.size * config.model.aev.length < _SMALL_BATCH
    few = min(_FEW_THREADS, torch.get_num_threads()) if training.forces else 1
    with using_threads(training.threads or few * small), heard_signals() as signals:
        return _Run(config, reporter, data, loaders, ranks, of_data).train(start, resumed, signals)


class _Run:
    """A run whose data are ready."""

    def __init__(
        self,
        config: RunConfig,
        reporter: Reporter,
        data: RunData,
        loaders: dict[str, Loader],
        ranks: Ranks,
        fingerprint: str,
    ) -> None:
        """fingerprint: of the data."""
        self._config, self._reporter, self._data, self._loaders = config, reporter, data, loaders
        self._ranks, self._fingerprint = ranks, fingerprint
        self._directory = config.training.output

    def train(self, start: Start | None, resumed: Resumed | None, signals: StopSignals) -> RunResult:
        """The epochs, and the errors of the model that is kept."""
        config, training = self._config, self._config.training
        self_energies = self._data.self_energies.self_energies
        state, schedules = first_state(config, self_energies, start, self._ranks, resumed is not None)
        n_steps = training.epochs * self._loaders["train"].n_batches
        jacobians = self._loaders["train"].packer.source.jacobians is not None
        compiled = repays_compilation(training.compile, jacobians, n_steps)
        loop = Loop(config, self._loaders, state, schedules, compiled, self._ranks, lambda: signals.received)
        if resumed is not None:
            loop.go_on(resumed.progress, resumed.history)
        self._reporter.ready(Setup(config, self._data, state.params, compiled, self._ranks.size))
        if resumed is not None and self._ranks.is_first:
            self._write_settings()
        stopped_by = self._epochs(loop, resumed is not None)
        result = RunResult(self._directory, loop.best, loop.history, {}, {}, {}, loop.shapes, stopped_by)
        if stopped_by in (0, signal.SIGINT):  # a scheduler has no patience
            self._finish(loop, result)
        self._ranks.wait()  # who ends before the first has written all is taken for one that failed
        return result

    def _finish(self, loop: Loop, result: RunResult) -> None:
        """Fill in the errors of the model that is kept, and predictions; write what is known of where to trust it."""
        if self._ranks.is_first:
            loop.save(self._directory, self._calibration(loop.best), self._domain())
        for part, loader in self._loaders.items():
            packer = loader.packer
            if len(packer.members):
                result.errors[part] = loop.errors(part)
                result.labelled[part] = np.isfinite(packer.source.energies[packer.members]).sum(axis=0).tolist()
                if self._ranks.is_first:
                    result.predictions[part] = self._predictions(packer, loop.best)
        self._reporter.finished(result)

    def _calibration(self, params: Params) -> Calibration | None:
        """What the spread of the members means, of an ensemble."""
        packer = self._loaders["valid"].packer
        if self._config.training.ensemble == 1:
            return None
        whole = packer.unshared(packer.members)
        return calibrate(self._config.model, params, whole, self._config.training.forces)

    def _domain(self) -> Domain:
        return fit_domain(self._config.model, self._loaders["train"].packer)

    def _epochs(self, loop: Loop, is_begun: bool) -> int:
        """Every epoch, and what is written of it. Returns the signal that ended it early, or 0.

        is_begun: whether the run directory is this run's already.
        """
        training = self._config.training
        try:
            while loop.epoch < training.epochs:
                record = loop.run_epoch()
                is_begun = is_begun or self._begin()
                due = loop.epoch == training.epochs or loop.epoch % training.save_every == 0
                if due or loop.epoch == 1:
                    loop.save(self._directory)
                if due:
                    loop.save_checkpoint(self._directory, self._fingerprint)
                self._reporter.epoch(record, training.epochs)
        except StoppedError as stopped:
            return self._stop(loop, stopped.number, is_begun)
        except PyKinMLError:
            if loop.epoch > 0:
                loop.save(self._directory)
            raise
        return 0

    def _begin(self) -> bool:
        """Make the run directory this run's: an earlier one is kept there until then. Returns True."""
        if self._ranks.is_first:
            clear(self._directory)
            self._write_settings()
        return True

    def _write_settings(self) -> None:
        labels = self._data.labels
        write_toml(self._directory / "config.toml", self._config)
        write_split(self._directory / "split.txt", self._data.split, labels.ids, labels.energies[:, -1])

    def _stop(self, loop: Loop, number: int, is_begun: bool) -> int:
        """Save what there is, unless that is nothing yet and the user, who pressed Ctrl-C, knows. Returns number."""
        if number == signal.SIGINT and loop.epoch == 0:
            raise KeyboardInterrupt
        if not is_begun:
            self._begin()
        loop.save(self._directory)
        loop.save_checkpoint(self._directory, self._fingerprint)
        return number

    def _predictions(self, packer: Packer, params: Params) -> Predictions:
        """Predictions for the structures of a part of the split that are shown."""
        members = packer.members
        step = -(-len(members) // _SHOWN_STRUCTURES)
        shown = packer.unshared(members[::step])
        n_members = self._config.training.ensemble
        predict = build_predict_step(self._config.model, self._config.training.forces, n_members)
        energies, forces = [], []
        for index in shown.cut(shown.members):
            batch = shown.pack(index)
            found = predict(params, batch)
            if n_members > 1:
                found = tuple(each.mean(dim=0) for each in found)
            references = torch.where(batch.energy_mask > 0, batch.energies, torch.nan)
            energies.append(torch.stack([references, found[0]])[:, : len(index)].cpu().numpy())
            if batch.forces is not None and batch.component_weights is not None:
                labelled = batch.component_weights.unsqueeze(-1) > 0
                pair = (torch.where(labelled, batch.forces, torch.nan), found[1])
                forces.append(np.stack([shown.unpack(index, per_atom) for per_atom in pair]))
        together = np.concatenate(forces, axis=1) if forces else None
        return Predictions(np.concatenate(energies, axis=1), together)


def _check_output(config: RunConfig) -> None:
    """What is read must not lie where the run is written. Raises ConfigError."""
    output, start = config.training.output, config.training.start_from
    read = [Path(name) for name in config.data.split_files] + ([] if start is None else [start])
    for path in read:
        if output.resolve() in path.resolve().parents:
            raise ConfigError(
                f"output must not hold what the run reads, got {output} and {path}, which the run would replace; "
                "choose another with --output"
            )

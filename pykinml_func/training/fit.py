"""The whole of a training run: data, split, self energies, networks, the epoch loop, the run directory."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from pykinml_func.config import RunConfig
from pykinml_func.config.toml import write_toml
from pykinml_func.data.loader import Loader
from pykinml_func.data.prepared import Contents, PreparedSet, complete, discard
from pykinml_func.data.splits import write_split
from pykinml_func.errors import ConfigError, PyKinMLError
from pykinml_func.threads import using_threads
from pykinml_func.training.compilation import check_compiler, repays_compilation
from pykinml_func.training.loop import Loop
from pykinml_func.training.metrics import add_sums, step_sums, summary
from pykinml_func.training.reporter import Predictions, Reporter, RunResult, Setup
from pykinml_func.training.run_directory import claimed, clear
from pykinml_func.training.setup import RunData, make_loaders, open_run, run_data
from pykinml_func.training.start import Start, first_state
from pykinml_func.training.step import build_predict_step
from pykinml_func.types import Params

_SMALL_BATCH = 2**18
"""Numbers in a batch's AEVs below which training to energies gains a tenth by a second thread, and training to forces a
third (50 structures of C5H5: 2**17). Where other work makes threads wait for each other, both lose more than that.
"""

_FEW_THREADS = 4
"""For small batches of force training."""


def prepare(config: RunConfig, reporter: Reporter) -> PreparedSet:
    """Open or make the prepared set that training with `config` needs. Raises ConfigError or DataError."""
    started = time.perf_counter()
    prepared, config, _ = open_run(config)
    _complete(prepared, config, reporter, started)
    return prepared


def _complete(prepared: PreparedSet, config: RunConfig, reporter: Reporter, started: float) -> None:
    """Compute the AEVs and Jacobians that are needed and not there yet. started: when the set was asked for."""
    contents: Contents = "aevs"
    if config.training.forces:
        contents = "jacobians" if config.training.force_path == "jacobian" else "structures"
    complete(prepared, contents, reporter.featurizing)
    reporter.prepared(prepared, time.perf_counter() - started)


def fit(config: RunConfig, reporter: Reporter, overwrite: bool = False) -> RunResult:
    """Train as `config` says and write the run directory `config.training.output`.

    The model of the epoch with the least validation RMSE of the highest level's energies is kept. Raises ConfigError,
    DataError or ModelError before AEVs are computed for what cannot be used, PyKinMLError where training diverges.
    Ctrl-C and divergence keep what was trained so far. Where training starts from a model, that one does not compete:
    trained on to forces, say, a model may be better with a larger error of the energies.
    """
    device = _device(config.training.device)
    check_compiler(config.training.compile)
    _check_output(config)
    with claimed(config.training.output, overwrite):
        started = time.perf_counter()
        prepared, config, start = open_run(config)
        try:
            data = run_data(config, prepared, start)
        except PyKinMLError:
            discard(prepared)
            raise
        _complete(prepared, config, reporter, started)
        loaders = make_loaders(config, data, prepared, device)
        batch_atoms = float(np.diff(data.source.offsets)[data.split.train].mean() * loaders["train"].packer.batch_size)
        small = batch_atoms * config.model.aev.length < _SMALL_BATCH
        few = min(_FEW_THREADS, torch.get_num_threads()) if config.training.forces else 1
        with using_threads(config.training.threads or few * small):
            return _train(config, reporter, data, loaders, start)


def _train(
    config: RunConfig,
    reporter: Reporter,
    data: RunData,
    loaders: dict[str, Loader],
    start: Start | None,
) -> RunResult:
    """The epochs, and the errors of the model that is kept."""
    training = config.training
    device = loaders["train"].packer.device
    state, schedule = first_state(config, data.self_energies.self_energies, start, device)
    n_steps = training.epochs * loaders["train"].n_batches
    compiled = repays_compilation(training.compile, training.forces, n_steps)
    loop = Loop(config, loaders, state, schedule, compiled)
    reporter.ready(Setup(config, data, state.params, compiled))
    interrupted = _run_epochs(config, reporter, data, loop)
    found = {
        part: _predict(config, loader, loop.best) for part, loader in loaders.items() if len(loader.packer.members)
    }
    errors = {part: errors for part, (_, errors) in found.items()}
    predictions = {part: predictions for part, (predictions, _) in found.items()}
    result = RunResult(config.training.output, loop.best, loop.history, errors, predictions, loop.shapes, interrupted)
    reporter.finished(result)
    return result


def _run_epochs(config: RunConfig, reporter: Reporter, data: RunData, loop: Loop) -> bool:
    """Every epoch, and what is written of it. Returns whether Ctrl-C ended it."""
    training, directory = config.training, config.training.output
    try:
        while loop.epoch < training.epochs:
            record = loop.run_epoch()
            if loop.epoch == 1:
                clear(directory)
                write_toml(directory / "config.toml", config)
                write_split(directory / "split.txt", data.split, data.labels.ids, data.labels.energies[:, -1])
            due = loop.epoch == training.epochs or loop.epoch % training.save_every == 0
            if due or loop.epoch == 1:
                loop.save(directory)
            if due:
                loop.save_checkpoint(directory)
            reporter.epoch(record, training.epochs)
    except KeyboardInterrupt:
        if loop.epoch == 0:
            raise
        loop.save(directory)
        loop.save_checkpoint(directory)
        return True
    except PyKinMLError:
        if loop.epoch > 0:
            loop.save(directory)
        raise
    return False


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


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device must be one that torch can use here, got {name!r} ({error}); e.g. cpu") from None
    return device


def _predict(config: RunConfig, loader: Loader, params: Params) -> tuple[Predictions, dict[str, float]]:
    """Every prediction for one part of the split, and the errors."""
    predict = build_predict_step(config.model, config.training.forces)
    energies, forces, sums = [], [], []
    for index in loader.packer.cut(loader.packer.members):
        batch = loader.packer.pack(index)
        found = predict(params, batch)
        sums.append(step_sums(batch, *found))
        references = torch.where(batch.energy_mask > 0, batch.energies, torch.nan)
        energies.append(torch.stack([references, found[0]])[:, : len(index)].cpu().numpy())
        if batch.forces is not None and batch.component_weights is not None:
            labelled = batch.component_weights.unsqueeze(-1) > 0
            pair = (torch.where(labelled, batch.forces, torch.nan), found[1])
            forces.append(np.stack([loader.packer.unpack(index, per_atom) for per_atom in pair]))
    together = np.concatenate(forces, axis=1) if forces else None
    errors = summary(add_sums(sums), config.model.fidelities)
    return Predictions(np.concatenate(energies, axis=1), together), errors

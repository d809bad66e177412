"""The whole of a training run: data, split, self energies, networks, the epoch loop, the run directory."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import psutil
import torch
from torch.utils._pytree import tree_map

from pykinml_func.config import RunConfig, TrainConfig, write_toml
from pykinml_func.data.batching import Packer, Source
from pykinml_func.data.elements import composition, species_of
from pykinml_func.data.featurize import jacobian_offsets
from pykinml_func.data.loader import Loader
from pykinml_func.data.prepared import Advance, Contents, PreparedSet, complete, open_prepared
from pykinml_func.data.splits import Split, make_split, make_split_from_marks, read_split_files, write_split
from pykinml_func.errors import ConfigError, DataError, PyKinMLError
from pykinml_func.files import write_atomically
from pykinml_func.potential.energy import init_params
from pykinml_func.potential.self_energies import SelfEnergyFit, fit_self_energies, subtract_self_energies
from pykinml_func.threads import using_threads
from pykinml_func.training.checkpoint import save_checkpoint, save_model
from pykinml_func.training.compilation import CompiledStep, repays_compilation
from pykinml_func.training.metrics import add_sums, step_sums, summary
from pykinml_func.training.optimizers import adam
from pykinml_func.training.schedules import PlateauState, reduce_on_plateau
from pykinml_func.training.step import build_eval_step, build_predict_step, build_train_step
from pykinml_func.types import Params, Structures, TrainState

_JACOBIAN_SHARE = 0.25
"""Part of the free memory that Jacobians may fill before `auto` takes the positions path."""

_SMALL_BATCH = 2**18
"""Numbers in a batch's AEVs below which several threads gain a third over one at most, and lose an order of magnitude
where other work makes them wait for each other (50 structures of C5H5: 2**17).
"""


class Predictions(NamedTuple):
    """Reference and predicted values of one part of the split."""

    energies: np.ndarray
    """(2,m) eV, self energies subtracted: references, then predictions"""
    forces: np.ndarray | None
    """(2,a,3) eV/Å"""


class RunResult(NamedTuple):
    """What a run found."""

    directory: Path
    params: Params
    """of the epoch with the least validation RMSE of the energies"""
    history: list[dict[str, float]]
    """a record an epoch"""
    errors: dict[str, dict[str, float]]
    """of train, valid and test with `params`, as `metrics.summary` has them"""
    predictions: dict[str, Predictions]
    shapes: int
    """shapes of batches that were compiled; 0 for an eager run"""
    interrupted: bool = False
    """whether Ctrl-C ended it before its last epoch"""


class Setup(NamedTuple):
    """A run as it stands before its first epoch."""

    config: RunConfig
    """with the elements and the force path filled in"""
    structures: Structures
    split: Split
    self_energies: SelfEnergyFit
    params: Params
    compiled: bool


class Reporter(Protocol):
    """Hears of a run as it goes; `report.console.ConsoleReporter` prints it and draws the figures."""

    def featurizing(self, name: str, total: int) -> Advance:
        """AEVs or Jacobians of `total` structures are about to be computed; returns what hears how many are done."""

    def prepared(self, prepared: PreparedSet, seconds: float) -> None:
        """The prepared set is there."""

    def ready(self, setup: Setup) -> None:
        """The first epoch is next."""

    def epoch(self, record: dict[str, float], epochs: int) -> None:
        """An epoch is done."""

    def finished(self, result: RunResult) -> None:
        """The model is written."""


def prepare(config: RunConfig, reporter: Reporter) -> PreparedSet:
    """Open or make the prepared set that training with `config` needs. Raises ConfigError or DataError."""
    started = time.perf_counter()
    prepared, config = _open(config)
    _complete(prepared, config, reporter, started)
    return prepared


def _open(config: RunConfig) -> tuple[PreparedSet, RunConfig]:
    """The structures, and the config with elements and force path filled in."""
    prepared = open_prepared(config.data, config.model.aev, config.training.precision)
    model = config.model.model_copy(update={"aev": prepared.aev})
    training = config.training
    if training.forces:
        _require_forces(prepared.structures)
        training = training.model_copy(update={"force_path": _force_path(training, prepared)})
    return prepared, config.model_copy(update={"model": model, "training": training})


def _complete(prepared: PreparedSet, config: RunConfig, reporter: Reporter, started: float) -> None:
    """Compute the AEVs and Jacobians that are needed and not there yet. started: when the set was asked for."""
    contents: Contents = "aevs"
    if config.training.forces:
        contents = "jacobians" if config.training.force_path == "jacobian" else "structures"
    complete(prepared, contents, reporter.featurizing)
    reporter.prepared(prepared, time.perf_counter() - started)


def _require_forces(structures: Structures) -> None:
    lacking = np.isnan(structures.forces[:, 0]).any(axis=1)
    if lacking.any():
        owners = np.unique(np.searchsorted(structures.offsets, np.flatnonzero(lacking), side="right") - 1)
        raise DataError(
            f"forces must be there for every structure when training to them, and {len(owners)} of "
            f"{structures.n_structures} have none, {structures.ids[owners[0]]} first; leave those out, or train "
            "without forces"
        )


def _force_path(training: TrainConfig, prepared: PreparedSet) -> str:
    if training.force_path != "auto":
        return training.force_path
    entries = int(jacobian_offsets(prepared.structures.sizes, prepared.aev.length)[-1])
    needed = entries * np.dtype(training.precision).itemsize
    return "jacobian" if needed < _JACOBIAN_SHARE * psutil.virtual_memory().available else "positions"


def fit(config: RunConfig, reporter: Reporter, overwrite: bool = False) -> RunResult:
    """Train as `config` says and write the run directory `config.training.output`.

    The model of the epoch with the least validation RMSE of the energies is kept. Raises ConfigError or DataError
    before any work for what cannot be used, PyKinMLError where training diverges. Ctrl-C and divergence keep what was
    trained so far.
    """
    device = _device(config.training.device)
    with _claimed(config.training.output, overwrite):
        started = time.perf_counter()
        prepared, config = _open(config)
        split = _split(config, prepared.structures)
        source, self_energies = _source(config, prepared.structures, split)
        _complete(prepared, config, reporter, started)
        loaders = _loaders(config, _with_features(config, source, prepared), split, device)
        batch_atoms = float(np.diff(source.offsets)[split.train].mean() * loaders["train"].packer.batch_size)
        small = batch_atoms * config.model.aev.length < _SMALL_BATCH
        with using_threads(config.training.threads or int(small)):
            return _train(config, reporter, prepared.structures, split, self_energies, loaders, batch_atoms)


def _train(
    config: RunConfig,
    reporter: Reporter,
    structures: Structures,
    split: Split,
    self_energies: SelfEnergyFit,
    loaders: dict[str, Loader],
    batch_atoms: float,
) -> RunResult:
    """The epochs and what is written of them."""
    training, directory = config.training, config.training.output
    generator = torch.Generator().manual_seed(training.seeds[1])
    params = init_params(config.model, generator, getattr(torch, training.precision))
    params = _to(Params(params.networks, self_energies.self_energies), loaders["train"].packer.device)
    path = training.force_path if training.forces else None
    n_steps = training.epochs * loaders["train"].n_batches
    compiled = repays_compilation(training.compile, path, n_steps, batch_atoms)
    reporter.ready(Setup(config, structures, split, self_energies, params, compiled))
    loop, interrupted = _Loop(config, loaders, params, compiled), False

    try:
        while loop.epoch < training.epochs:
            record = loop.run_epoch()
            if loop.epoch == 1:
                _clear(directory)
                write_toml(directory / "config.toml", config)
                write_split(directory / "split.txt", split, structures.ids, structures.energies[:, 0])
            due = loop.epoch == training.epochs or loop.epoch % training.save_every == 0
            if due or loop.epoch == 1:
                loop.save(directory)
            if due:
                loop.save_checkpoint(directory)
            reporter.epoch(record, training.epochs)
    except KeyboardInterrupt:
        if loop.epoch == 0:
            raise
        interrupted = True
        loop.save(directory)
        loop.save_checkpoint(directory)
    except PyKinMLError:
        if loop.epoch > 0:
            loop.save(directory)
        raise
    found = {
        part: _predict(config, loader, loop.best) for part, loader in loaders.items() if len(loader.packer.members)
    }
    errors = {part: errors for part, (_, errors) in found.items()}
    predictions = {part: predictions for part, (predictions, _) in found.items()}
    result = RunResult(directory, loop.best, loop.history, errors, predictions, loop.shapes, interrupted)
    reporter.finished(result)
    return result


@contextmanager
def _claimed(directory: Path, overwrite: bool) -> Iterator[None]:
    """Keep a run directory to one run, and what is in it safe unless `overwrite`. Raises ConfigError."""
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"output must be a directory, got the file {directory}; choose another with --output")
    if (directory / "model.safetensors").exists() and not overwrite:
        raise ConfigError(
            f"{directory} already holds a run; choose another with --output, or replace it with --overwrite"
        )
    ours = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    claim = directory / "running"
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        raise ConfigError(
            f"{directory} is being written by another run; choose another with --output, or delete {claim} if that run "
            "was killed"
        ) from None
    try:
        yield
    finally:
        claim.unlink(missing_ok=True)
        if ours and not any(directory.iterdir()):
            directory.rmdir()


def _clear(directory: Path) -> None:
    """Remove what a replaced run left, so that no file of it passes for one of the new run."""
    for name in ("model.safetensors", "metrics.jsonl", "*.png", "checkpoints/epoch_*.safetensors"):
        for path in directory.glob(name):
            path.unlink()


class _Loop:
    """The epoch loop and the state that it carries."""

    def __init__(self, config: RunConfig, loaders: dict[str, Loader], params: Params, compiled: bool) -> None:
        training = config.training
        self.config, self.loaders = config, loaders
        optimizer = adam()
        weight = training.force_weight if training.forces else None
        self._step = build_train_step(config.model, optimizer, weight)
        self._evaluate = build_eval_step(config.model, training.forces)
        if compiled:
            self._step, self._evaluate = CompiledStep(self._step), CompiledStep(self._evaluate)
        self.plateau = PlateauState(training.learning_rate)
        rate = torch.tensor(training.learning_rate, dtype=torch.float64, device=params.self_energies.device)
        self.state = TrainState(params, optimizer.init(params.networks), rate)
        self.best, self._best_rmse = params, math.inf
        self.history: list[dict[str, float]] = []
        self._validation = list(loaders["valid"].epoch(0))

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    @property
    def shapes(self) -> int:
        """Shapes that were compiled."""
        return sum(step.shapes for step in (self._step, self._evaluate) if isinstance(step, CompiledStep))

    def run_epoch(self) -> dict[str, float]:
        """Train on every batch once, validate, adapt the learning rate. Returns the epoch's record.

        The loop's state changes at the end alone, so that an interrupted epoch leaves that of the one before.
        """
        started, state, sums = time.perf_counter(), self.state, []
        for batch in self.loaders["train"].epoch(self.epoch):
            state, step_sums = self._step(state, batch)
            sums.append(step_sums)
        train = summary(add_sums(sums))
        valid = summary(add_sums(self._evaluate(state.params, batch) for batch in self._validation))
        rmse = valid["energy_rmse"]
        if not math.isfinite(rmse) or not math.isfinite(train["energy_rmse"]):
            raise PyKinMLError(
                f"training diverged in epoch {self.epoch + 1}: the errors are no longer finite; lower learning_rate "
                f"({self.plateau.learning_rate:g} now)"
            )
        if rmse < self._best_rmse:
            self.best, self._best_rmse = state.params, rmse
        record = {"epoch": self.epoch + 1, "learning_rate": self.plateau.learning_rate}
        record |= {
            f"{part}_{name}": value
            for part, found in (("train", train), ("valid", valid))
            for name, value in found.items()
        }
        record["seconds"] = time.perf_counter() - started
        training = self.config.training
        self.plateau = reduce_on_plateau(self.plateau, rmse, training.patience, training.threshold, training.decay)
        self.state = state._replace(learning_rate=torch.full_like(state.learning_rate, self.plateau.learning_rate))
        self.history.append(record)
        return record

    def save(self, directory: Path) -> None:
        """Write the best model and the metrics."""
        save_model(directory / "model.safetensors", self.config.model, self.best)
        text = "".join(json.dumps(record) + "\n" for record in self.history)
        write_atomically(directory / "metrics.jsonl", lambda temporary: temporary.write_text(text))

    def save_checkpoint(self, directory: Path) -> None:
        """Write the state after the last epoch."""
        path = directory / "checkpoints" / f"epoch_{self.epoch:05d}.safetensors"
        save_checkpoint(path, self.config.model, self.state, self.plateau, self.epoch)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device must be one that torch can use here, got {name!r} ({error}); e.g. cpu") from None
    return device


def _to(params: Params, device: torch.device) -> Params:
    moved: Params = tree_map(lambda tensor: tensor.to(device), params)
    return moved


def _split(config: RunConfig, structures: Structures) -> Split:
    data, seed = config.data, config.training.seeds[0]
    if data.split_files:
        marks = read_split_files([Path(name) for name in data.split_files])
        split = make_split_from_marks(data.split, [marks[str(name)] for name in structures.ids], seed)
    else:
        split = make_split(data.split, structures.n_structures, seed)
    if len(split.train) == 0 or len(split.valid) == 0:
        raise ConfigError(
            "split must leave training and validation structures (the learning rate and the best model go by the "
            f"latter), got {len(split.train)} and {len(split.valid)} of {structures.n_structures}"
        )
    return split


def _source(config: RunConfig, structures: Structures, split: Split) -> tuple[Source, SelfEnergyFit]:
    """What batches are cut from, without features; self energies (of the training split) subtracted."""
    elements = config.model.aev.elements
    species = species_of(elements, structures)
    counts = torch.from_numpy(composition(species, structures.offsets, len(elements)))
    trained = (counts[split.train] > 0).any(dim=0).tolist()
    if not all(trained):
        kept = [symbol for symbol, there in zip(elements, trained, strict=True) if there]
        raise ConfigError(
            f"every element must occur in a training structure, and {', '.join(set(elements) - set(kept))} occurs in "
            f"none; train on more structures, or leave it out: --elements {','.join(kept)}"
        )
    energies = torch.from_numpy(structures.energies[:, 0])
    fit = SelfEnergyFit(torch.zeros(len(elements), dtype=torch.float64), len(elements))
    if config.data.fit_self_energies:
        fit = fit_self_energies(counts[split.train], energies[split.train])
    targets = subtract_self_energies(fit.self_energies, counts, energies).numpy()
    return Source(species, structures.positions, structures.offsets, len(elements), targets), fit


def _with_features(config: RunConfig, source: Source, prepared: PreparedSet) -> Source:
    """The source with what the force path needs of the prepared set."""
    if not config.training.forces:
        return source._replace(aevs=prepared.aevs)
    source = source._replace(forces=prepared.structures.forces[:, 0])
    if config.training.force_path == "positions":
        return source
    return source._replace(aevs=prepared.aevs, jacobians=prepared.jacobians)


def _loaders(config: RunConfig, source: Source, split: Split, device: torch.device) -> dict[str, Loader]:
    training, dtype = config.training, getattr(torch, config.training.precision)
    sizes = (training.batch_size, training.valid_batch_size, training.test_batch_size)
    packers = [Packer(source, part, size, dtype, device) for part, size in zip(split, sizes, strict=True)]
    train_seed = training.seeds[1] if training.order == "shuffled" else None
    seeds = (train_seed, None, None)
    return {part: Loader(packer, seed) for part, packer, seed in zip(Split._fields, packers, seeds, strict=True)}


def _predict(config: RunConfig, loader: Loader, params: Params) -> tuple[Predictions, dict[str, float]]:
    """Every prediction for one part of the split, and the errors."""
    forces = config.training.forces
    predict = build_predict_step(config.model, forces)
    energies, atomic_forces, sums = [], [], []
    for index in loader.packer.cut(loader.packer.members):
        batch = loader.packer.pack(index)
        found = predict(params, batch)
        sums.append(step_sums(batch, *found))
        real = batch.structure_mask > 0
        energies.append(torch.stack([batch.energies[real], found[0][real]]).cpu().numpy())
        if batch.forces is not None:
            pair = [loader.packer.unpack(index, per_atom) for per_atom in (batch.forces, found[1])]
            atomic_forces.append(np.stack(pair))
    together = np.concatenate(atomic_forces, axis=1) if atomic_forces else None
    return Predictions(np.concatenate(energies, axis=1), together), summary(add_sums(sums))

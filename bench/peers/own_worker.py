"""Our own answers, by what users call: `prepare`, `fit`, the calculator, the predictor, the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map

from bench.peers.moving import moving
from bench.peers.problem import AEV, MEMBERS, images, read, training_settings
from bench.peers.protocol import Answer, Task, median_of_calls, serve, timed
from bench.recorder import Recorder
from pykinml_func import ModelConfig, Params, Predictor, PyKinMLCalculator, RunConfig, Structures, load_model
from pykinml_func.config.build import build_config
from pykinml_func.data.featurize import fill_aevs
from pykinml_func.training.fit import fit, prepare
from pykinml_func.training.reporter import SilentReporter

SETTINGS = json.loads(sys.argv[1])
SCRATCH = Path(SETTINGS["scratch"])
_WARM_EPOCHS = 2


def start() -> Mapping[str, Task]:
    """Threads."""
    torch.set_num_threads(SETTINGS["threads"])
    return {
        "aevs": aevs,
        "prepare": prepare_anew,
        "prepare_set": prepare_set,
        "epoch": epoch,
        "one_structure": one_structure,
        "ensemble": ensemble,
        "predict": predict,
        "cold_start": cold_start,
    }


@cache
def _structures() -> Structures:
    return read(Path(SETTINGS["data"]))


def aevs() -> Answer:
    """Seconds for the AEVs of all structures."""
    structures = _structures()
    out = np.empty((len(structures.numbers), AEV.length))
    return {"seconds": timed(lambda: fill_aevs(AEV, structures, "native", out, lambda _: None))}


def _config(prepared: Path, output: Path, **settings: Any) -> RunConfig:
    common = {
        **training_settings(Path(SETTINGS["data"])),
        "precision": SETTINGS["dtype"],
        "device": SETTINGS["device"],
        "prepared": prepared,
        "output": output,
    }
    return build_config(common | settings)


def prepare_anew() -> Answer:
    """Seconds for AEVs and Jacobians on disk, from the database."""
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        config = _config(Path(folder), Path(folder) / "run", forces=True, force_path="jacobian")
        return {"seconds": timed(lambda: prepare(config, SilentReporter()))}


def prepare_set(**settings: Any) -> Answer:
    """Make the set that `epoch` reads."""
    config = _config(SCRATCH / "own_prepared", SCRATCH / "run", **settings)
    return {"seconds": timed(lambda: prepare(config, SilentReporter()))}


def epoch(epochs: int, **settings: Any) -> Answer:
    """Median seconds of an epoch, training and validation, after the first two; settings: `pykinml train`'s."""
    recorder = Recorder(_WARM_EPOCHS, epochs)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        fit(_config(SCRATCH / "own_prepared", Path(folder) / "run", **settings), recorder)
    return {"seconds": recorder.median, "first_epoch_seconds": recorder.first}


@cache
def _member(number: int) -> tuple[ModelConfig, Params]:
    config, params = load_model(SCRATCH / f"member_{number}.safetensors", SETTINGS["device"])
    precision = getattr(torch, SETTINGS["dtype"])
    return config, params._replace(networks=tree_map(lambda leaf: leaf.to(precision), params.networks))


@cache
def _calculator(members: int) -> PyKinMLCalculator:
    several: Any = [_member(number) for number in range(members)]
    return PyKinMLCalculator(several if members > 1 else several[0])


def _seconds_a_call(calculator: PyKinMLCalculator, calls: int) -> float:
    """Median seconds of energy and forces."""
    first = _structures().take(np.arange(1))
    return median_of_calls(moving(calculator, first.numbers, first.positions), calls)


def one_structure(calls: int) -> Answer:
    """Median seconds of energy and forces by the calculator."""
    return {"seconds": _seconds_a_call(_calculator(1), calls)}


def ensemble(calls: int) -> Answer:
    """Eight members over one, in time."""
    several, one = (_seconds_a_call(_calculator(members), calls) for members in (MEMBERS, 1))
    return {"ratio": several / one, "seconds": several}


@cache
def _images() -> list[Any]:
    return images(_structures())


def predict() -> Answer:
    """Structures a second by `Predictor.predict`, from ASE's Atoms."""
    predictor = Predictor(*_member(0))
    return {"rate": len(_images()) / timed(lambda: predictor.predict(_images()))}


def cold_start() -> Answer:
    """Seconds of `pykinml predict` on a file of one structure, from a new process to its end."""
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        given, written = Path(folder) / "one.xyz", Path(folder) / "predicted.extxyz"
        _images()[0].write(given)
        model = SCRATCH / "member_0.safetensors"
        command = [sys.executable, "-m", "pykinml_func.cli", "predict", str(model), str(given), "-o", str(written)]
        return {"seconds": timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))}


if __name__ == "__main__":
    serve(start)

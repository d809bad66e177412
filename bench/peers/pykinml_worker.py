"""PyKinML's answers: its preparation, its trainer, its ASE calculator, with the arguments that its manual names.

Training and preparation take beta = 1: below that aevmod's `eval_Jac`, which they use, is wrong.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import aevmod
import numpy as np
import torch
from ase import Atoms
from pykinml import data, nnpes, prepper, trainer
from pykinml.model_calculator import Nn_surr

from bench.peers.moving import moving
from bench.peers.protocol import Answer, Task, median_of_calls, serve, timed
from bench.peers.stand_ins.torch_changes import undo

SETTINGS = json.loads(sys.argv[1])
ACTIVATIONS = ["gaussian", "gaussian", "gaussian", "identity"]


@cache
def problem() -> dict[str, np.ndarray]:
    """The arrays of problem.npz."""
    return dict(np.load(SETTINGS["problem"]))


def start() -> Mapping[str, Task]:
    """Threads and float64, which PyKinML's entry points set too, and the check that its energies are ours."""
    undo()
    torch.set_num_threads(SETTINGS["threads"])
    torch.set_default_dtype(torch.float64)
    _check()
    return {
        "aevs": aevs,
        "prepare": prepare,
        "prepare_set": prepare_set,
        "epoch": epoch,
        "one_structure": one_structure,
    }


def arguments_of(folder: Path, forces: bool, epochs: int = 1) -> SimpleNamespace:
    """PyKinML's arguments under their documented names; `folder` takes what it writes."""
    shared = Path(SETTINGS["data"])
    return SimpleNamespace(
        input_data_type="sqlite",
        input_data_fname=str(shared / "C5H5.db"),
        trtsid_name=[str(shared / "sample_tvt.txt")],
        fidlevel=1,
        present_elements=["C", "H"],
        tvt=[2000, 48, 64],
        sae_fit=True,
        delta=False,
        multi_fid=False,
        temp=None,
        nameset=None,
        aev_params=[16, 8, 8],
        cuttoff_radius=[5.2, 3.8],
        beta=1.0,
        my_neurons=[48, 24, 12, 1],
        my_actfn=ACTIVATIONS,
        no_biases=True,
        optimizer=["Adam"],
        lrscheduler="rop",
        learning_rate=1e-3,
        weight_decay=0,
        momentum=0.5,
        decayrate=0.5,
        LR_patience=25,
        LR_threshold=0.05,
        epochs=epochs,
        save_every=1000,
        tr_batch_size=50,
        vl_batch_size=50,
        ts_batch_size=50,
        floss=forces,
        fw=0.3 if forces else 0.0,
        optimize_force_weight=False,
        load_model=False,
        load_model_name=[""],
        randomseed=[0, 1],
        ddp=False,
        pre_saved=True,
        savenm=str(folder),
        data_path=str(folder),
    )


def aevs() -> Answer:
    """Seconds for the AEVs of all structures, by the method that fills its database of AEVs."""
    numbers, positions = problem()["numbers"], problem()["positions"]
    symbols = [["C" if number == 6 else "H" for number in each] for each in numbers]
    made = data.Data_pes(atom_types=["C", "H"])
    made.initialize(["C", "H"])
    engine = aevmod.aev(["C", "H"], 16, 8, 8, [5.2, 3.8], beta=0.95)
    database = [list(each) for each in zip(symbols, positions, strict=True)]
    parsed = [[0.0]] * len(database)
    return {"seconds": timed(lambda: made.xyz_to_aev_db(database, len(database), parsed, engine, force=False))}


def prepare() -> Answer:
    """Seconds for AEVs and Jacobians on disk, from the database."""
    with tempfile.TemporaryDirectory() as folder:
        return {"seconds": timed(lambda: prepper.prep_data(arguments_of(Path(folder), True), fid=1))}


@cache
def _prepared(forces: bool) -> Path:
    """Its prepared set, in the harness's scratch folder, so that later processes find it too."""
    folder = Path(SETTINGS["scratch"]) / f"pykinml_{'forces' if forces else 'energies'}"
    if not (folder / "done").exists():
        folder.mkdir(exist_ok=True)
        prepper.prep_data(arguments_of(folder, forces), fid=1)
        (folder / "done").touch()
    return folder


def prepare_set(forces: bool) -> Answer:
    """Make the set that `epoch` reads."""
    return {"seconds": timed(lambda: _prepared(forces))}


class _TimedTrainer(trainer.Trainer):  # type: ignore[misc]
    """PyKinML's trainer, which hears how long each pass took."""

    seconds: ClassVar[dict[str, list[float]]] = {"train": [], "valid": [], "test": []}

    def _run_epoch(self, *args: Any, tvs: str) -> None:
        self.seconds[tvs].append(timed(lambda: super(_TimedTrainer, self)._run_epoch(*args, tvs=tvs)))


def epoch(forces: bool, epochs: int) -> Answer:
    """Median seconds of an epoch of its trainer: training and validation, as for the other tools, without its test."""
    folder = _prepared(forces)
    for passes in _TimedTrainer.seconds.values():
        passes.clear()
    trainer.Trainer = _TimedTrainer
    trainer.spawned_trainer("cpu", arguments_of(folder, forces, epochs), 0)
    both = [sum(pair) for pair in zip(_TimedTrainer.seconds["train"], _TimedTrainer.seconds["valid"], strict=True)]
    return {"seconds": statistics.median(both[2:] or both)}


@cache
def _calculator() -> Nn_surr:
    return Nn_surr(str(_checkpoint()), tnsr=False)


def _checkpoint() -> Path:
    """A checkpoint with our weights, as its trainer writes them."""
    found = problem()
    layers = [torch.from_numpy(found[f"weights_{layer}"][0]) for layer in range(4)]
    sizes = {"n_input": [layers[0].shape[-1]] * 2, "neurons": [[layer.shape[1] for layer in layers]] * 2}
    settings = {**sizes, "sae_energies": found["self_energies"], "add_sae": True, "biases": False}
    net = nnpes.CompositeNetworks(**settings, activations=[prepper.args_to_actfn(ACTIVATIONS)] * 2)
    for place, blocks in enumerate(net.NNs):
        for block, layer in zip(blocks, layers, strict=True):
            block.linear.weight.data.copy_(layer[place])
    path = Path(SETTINGS["scratch"]) / "pykinml_model.pt"
    params = {**settings, "activations": [ACTIVATIONS] * 2}
    torch.save({"model_state_dict": net.state_dict(), "params": params}, path)
    return path


def _check() -> None:
    """Raises ValueError where its energies are not ours. (Its forces cannot be: the calculator has beta 0.95.)"""
    for positions, ours in zip(problem()["positions"], problem()["our_energies"], strict=False):
        _calculator().calculate(Atoms(numbers=problem()["numbers"][0], positions=positions), ["energy", "forces"])
        found = float(np.squeeze(_calculator().results["energy"]))
        if abs(found - ours) > 1e-8:
            raise ValueError(f"PyKinML's energies must equal ours before it is timed, got {found} and {ours} eV")


def one_structure(calls: int) -> Answer:
    """Median seconds of energy and forces by its ASE calculator."""
    call = moving(_calculator(), problem()["numbers"][0], problem()["positions"][0])
    return {"seconds": median_of_calls(call, calls)}


if __name__ == "__main__":
    serve(start)

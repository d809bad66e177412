"""PyKinML's calculator under its own name: against what PyKinML gave, and its arguments one by one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.optimize import BFGS

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.errors import ConfigError, ModelError
from pykinml_func.inference.calculator import PyKinMLCalculator
from pykinml_func.inference.nn_surr import Nn_surr
from pykinml_func.potential.ensemble import stack_members
from pykinml_func.training.model_file import save_ensemble, save_model
from pykinml_func.training.pykinml_checkpoint import convert_pykinml, read_pykinml_checkpoint
from pykinml_func.types import Ensemble, Params

Model = tuple[ModelConfig, Params]

SIZES = {"nrho_rad": 3, "nrho_ang": 2, "nalpha": 2}
AEV = AEVConfig(elements=("C", "H"), n_radial=3, n_angular_radial=2, n_angular=2)


@pytest.fixture
def file(tmp_path: Path, model: Model) -> Path:
    """Of C, H and O, with 6, 3 and 4 sizes."""
    save_model(tmp_path / "model.safetensors", *model)
    return tmp_path / "model.safetensors"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint as PyKinML's, of random weights for C and H."""

    def write(name: str = "model-0009.pt", levels: int = 1, seed: int = 0) -> Path:
        generator, state = torch.Generator().manual_seed(seed), {}
        for level in ("NNs", "NNs_hf")[:levels]:
            widths = [AEV.length + (level == "NNs_hf"), 5, 1]
            for species in range(2):
                for layer, (into, out) in enumerate(pairwise(widths)):
                    drawn = torch.randn(out, into, generator=generator, dtype=torch.float64)
                    state[f"{level}.{species}.{layer}.linear.weight"] = drawn
        names = [["tanh", "identity"]] * 2
        params = {"activations": names, "activations_hf": names, "add_sae": True}
        params["sae_energies"] = [-1030.5, -13.6]
        torch.save({"model_state_dict": state, "params": params}, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def methane() -> Atoms:
    bent = molecule("CH4")
    bent.positions += np.random.default_rng(1).normal(0, 0.1, (5, 3))
    return bent


def converted(path: Path, fidelities: tuple[int, ...] = (1,)) -> Model:
    return convert_pykinml(read_pykinml_checkpoint(path), AEV, fidelities)


def test_gives_what_pykinml_gave(shared: Path):
    """With the arguments that a script for PyKinML has, by place and by name."""
    reference = np.load(shared / "parity" / "pykinml_checkpoint_reference.npz")
    path = str(shared / "parity" / "pykinml_checkpoint.pt")
    given = {"nrho_rad": 16, "nrho_ang": 8, "nalpha": 8, "R_c": [5.2, 3.8], "mf": False, "present_elements": ["C", "H"]}
    for surrogate in (Nn_surr(path), Nn_surr(path, None, False, "surrogate", None, False, "cpu", **given)):
        for place, positions in enumerate(reference["positions"][:3]):
            atoms = Atoms("C5H5", positions)
            atoms.calc = surrogate
            assert atoms.get_potential_energy() == pytest.approx(reference["energies"][place], rel=0, abs=1e-9)
            np.testing.assert_allclose(
                atoms.get_forces(), reference["forces_by_central_difference"][place], rtol=0, atol=1e-5
            )
            surrogate.calculate(atoms)
            assert surrogate.results["energy"] == atoms.get_potential_energy()


def test_is_the_calculator_of_our_models(file: Path, model: Model, methane: Atoms):
    surrogate, expected = Nn_surr(file), PyKinMLCalculator(model)
    assert surrogate.get_potential_energy(methane) == expected.get_potential_energy(methane)
    np.testing.assert_array_equal(surrogate.get_forces(methane), expected.get_forces(methane))
    np.testing.assert_array_equal(surrogate.get_hessian(), expected.get_hessian())
    assert (surrogate.label, surrogate.multinn, surrogate.tnsr, surrogate.device) == (
        "surrogate",
        False,
        False,
        "cpu",
    )
    assert (surrogate.nrho_rad, surrogate.nrho_ang, surrogate.nalpha, surrogate.R_c) == (6, 3, 4, [5.2, 3.8])


def test_one_model_has_a_spread_of_zero(file: Path, methane: Atoms):
    surrogate = Nn_surr([str(file)])
    surrogate.calculate(methane)
    assert surrogate.results["energy_std"] == 0
    np.testing.assert_array_equal(surrogate.results["forces_std"], np.zeros((5, 3)))
    assert not surrogate.multinn


def test_several_files_are_an_ensemble(checkpoint: Callable[..., Path], methane: Atoms, tmp_path: Path):
    """Ours, of one member or of two, beside PyKinML's."""
    paths = [checkpoint(f"{seed}.pt", seed=seed) for seed in range(4)]
    models = [converted(path) for path in paths]
    save_model(tmp_path / "1.safetensors", *models[1])
    both = Ensemble(models[2][0], stack_members([params for _, params in models[2:]]))
    save_ensemble(tmp_path / "2and3.safetensors", both)
    surrogate = Nn_surr([str(paths[0]), tmp_path / "1.safetensors", tmp_path / "2and3.safetensors"], **SIZES)
    expected = PyKinMLCalculator(models)
    for calculator in (surrogate, expected):
        calculator.calculate(methane)
    assert surrogate.multinn
    assert surrogate.results["energy_std"] > 0.1
    assert surrogate.results.keys() == expected.results.keys()
    for name, value in expected.results.items():
        np.testing.assert_array_equal(surrogate.results[name], value)
    methane.calc = Nn_surr(tmp_path / "2and3.safetensors")
    assert methane.get_potential_energy() == PyKinMLCalculator(both).get_potential_energy(methane)
    assert methane.calc.multinn


def test_two_levels_give_the_higher(checkpoint: Callable[..., Path], methane: Atoms):
    path = checkpoint(levels=2)
    expected = PyKinMLCalculator(converted(path, (0, 1)))
    for options in ({}, {"mf": True}):
        surrogate = Nn_surr(path, **SIZES, **options)
        assert surrogate.model_config.fidelities == (0, 1)
        assert surrogate.get_potential_energy(methane) == expected.get_potential_energy(methane)


def test_results_are_tensors_where_that_is_asked_for(checkpoint: Callable[..., Path], methane: Atoms):
    paths = [checkpoint(f"{seed}.pt", seed=seed) for seed in range(2)]
    plain, tensors = Nn_surr(paths, **SIZES), Nn_surr(paths, tnsr=True, **SIZES)
    for surrogate in (plain, tensors):
        surrogate.calculate(methane)
    assert tensors.results.keys() == plain.results.keys()
    for name, value in tensors.results.items():
        assert isinstance(value, torch.Tensor)
        np.testing.assert_array_equal(value.detach().numpy(), plain.results[name])


def test_calculate_takes_what_pykinml_s_takes(file: Path, methane: Atoms):
    surrogate = Nn_surr(file)
    for arguments, named in (((), {"args": None}), ((["energy"], ["positions"], None), {})):
        surrogate.calculate(methane, *arguments, **named)
        assert surrogate.results["energy"] == PyKinMLCalculator(surrogate._ensemble).get_potential_energy(methane)


def test_ase_can_use_it(file: Path, methane: Atoms):
    surrogate = Nn_surr(fname=str(file), atoms=methane)
    assert methane.calc is surrogate
    before = methane.get_potential_energy()
    BFGS(methane, logfile=None).run(fmax=1e-3, steps=3)
    assert methane.get_potential_energy() < before


def test_a_model_file_is_refused_where_it_differs(file: Path):
    same = {"nrho_rad": 6, "nrho_ang": 3, "nalpha": 4, "R_c": (5.2, 3.8), "present_elements": ["C", "H", "O"]}
    assert Nn_surr(file, **same, mf=False).nrho_rad == 6
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"nrho_rad": 16}, r"nrho_rad must be 6, which .*model\.safetensors was trained with and holds, got 16; leave"),
        ({"R_c": [4.6, 3.1]}, r"R_c\[0\] must be 5\.2, .*, got 4\.6"),
        ({"R_c": [5.2, 3.1]}, r"R_c\[1\] must be 3\.8, .*, got 3\.1"),
        ({"present_elements": ["C", "H"]}, r"present_elements must be \('C', 'H', 'O'\), .*, got \('C', 'H'\)"),
        ({"mf": True}, "mf must be False for .*, which has levels: 1, got True; leave it out"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ModelError, match=message):
            Nn_surr(file, **arguments)


def test_a_checkpoint_is_refused_where_it_cannot_be_so(checkpoint: Callable[..., Path], tmp_path: Path):
    path = checkpoint()
    with pytest.raises(ModelError, match=r"n_radial is nrho_rad.*AEVs must be of length 18, .*, got 224"):
        Nn_surr(path)
    with pytest.raises(ModelError, match=r"elements is present_elements.*elements must be 2, .*, got C, H, O"):
        Nn_surr(path, **SIZES, present_elements=["C", "H", "O"])
    with pytest.raises(ModelError, match=r"elements must be chemical symbols.*got Xx"):
        Nn_surr(path, **SIZES, present_elements=["C", "Xx"])
    with pytest.raises(ModelError, match=r"mf must be False for .*0009\.pt, which has levels: 1, got True"):
        Nn_surr(path, **SIZES, mf=True)
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(ModelError, match=r"text\.pt"):
        Nn_surr(tmp_path / "text.pt")
    for missing in ("none.pt", "none.safetensors"):
        with pytest.raises(ModelError, match=r"no (checkpoint|model file) .*none"):
            Nn_surr(tmp_path / missing)
    with pytest.raises(ModelError, match="number 2 differs from the first in radial_cutoff, angular_cutoff"):
        narrow = converted(path)[0]
        aev = AEVConfig(**{**AEV.model_dump(include=AEV.given), "radial_cutoff": 4.6, "angular_cutoff": 3.1})
        save_model(tmp_path / "narrow.safetensors", narrow.model_copy(update={"aev": aev}), converted(path)[1])
        Nn_surr([path, tmp_path / "narrow.safetensors"], **{**SIZES, "R_c": None})


def test_arguments_that_cannot_be_are_refused(file: Path):
    with pytest.raises(ConfigError, match="restart must be None, got old"):
        Nn_surr(file, "old")
    with pytest.raises(ConfigError, match="R_c must be the radial and the angular cutoff in Å, got"):
        Nn_surr(file, R_c=[5.2])
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ConfigError, match=f"device must be one that torch has here, got {device}"):
            Nn_surr(file, device=device)
    with pytest.raises(ConfigError, match="got nproc; leave it out"):
        Nn_surr(file, nproc=4)
    with pytest.raises(ModelError, match="got an empty list"):
        Nn_surr([])

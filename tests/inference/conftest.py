"""A small random model of C, H and O, and molecules of it in every order of atoms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.potential.energy import init_params
from pykinml_func.types import Networks, Params

Model = tuple[ModelConfig, Params]


def random_model(dtype: torch.dtype = torch.float64) -> Model:
    """Self energies are those of real atoms, so that what float32 would lose of them is seen."""
    aev = AEVConfig(elements=("C", "H", "O"), n_radial=6, n_angular_radial=3, n_angular=4)
    config = ModelConfig(aev=aev, neurons=(12, 8, 1), activations=("gaussian", "tanh", "identity"))
    params = init_params(config, torch.Generator().manual_seed(3))
    self_energies = torch.tensor([-1030.567, -13.587, -2041.839], dtype=torch.float64)
    weights, biases = (tuple(layer.to(dtype) for layer in layers) for layers in params.networks)
    return config, Params(Networks(weights, biases), self_energies)


@pytest.fixture(scope="session")
def model() -> Model:
    return random_model()


@pytest.fixture(scope="session")
def single_model() -> Model:
    return random_model(torch.float32)


@pytest.fixture
def molecules() -> list[Atoms]:
    """Seven formulas and one atom, some twice, distorted, their atoms shuffled."""
    generator = np.random.default_rng(5)
    images = []
    for name in ("H2CO", "CH4", "H2", "C2H2", "H2CO", "O", "CH3CH2OH", "CO", "H2O", "H2CO"):
        atoms = molecule(name)
        atoms.positions += generator.normal(0, 0.05, atoms.positions.shape)
        images.append(atoms[generator.permutation(len(atoms))])
    return images

"""Small random models of C, H and O (one level, two levels, a difference), and molecules in every order of atoms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.lj import LennardJones
from torch.utils._pytree import tree_map

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.potential.energy import init_params
from pykinml_func.types import Params

Model = tuple[ModelConfig, Params]


def random_model(dtype: torch.dtype = torch.float64, **levels: Any) -> Model:
    """Self energies are those of real atoms, so that what float32 would lose of them is seen."""
    aev = AEVConfig(elements=("C", "H", "O"), n_radial=6, n_angular_radial=3, n_angular=4)
    config = ModelConfig(aev=aev, neurons=(12, 8, 1), activations=("gaussian", "tanh", "identity"), **levels)
    params = init_params(config, torch.Generator().manual_seed(3))
    self_energies = torch.tensor([[-1030.567, -13.587, -2041.839]], dtype=torch.float64)
    of_levels = self_energies * torch.linspace(1, 0.9, config.n_levels, dtype=torch.float64)[:, None]
    return config, Params(tree_map(lambda layer: layer.to(dtype), params.networks), of_levels)


@pytest.fixture(scope="session")
def model() -> Model:
    return random_model()


@pytest.fixture(scope="session")
def single_model() -> Model:
    return random_model(torch.float32)


@pytest.fixture(scope="session")
def chain_model() -> Model:
    """Levels 0, 2 and 5."""
    return random_model(fidelities=(0, 2, 5))


@pytest.fixture(scope="session")
def single_chain_model() -> Model:
    return random_model(torch.float32, fidelities=(0, 2, 5))


@pytest.fixture(scope="session")
def delta_model() -> Model:
    """Level 1 less level 0."""
    return random_model(baseline=0)


@pytest.fixture(scope="session")
def single_delta_model() -> Model:
    return random_model(torch.float32, baseline=0)


@pytest.fixture
def low_level() -> LennardJones:
    """Of some eV in a molecule, and not so steep there that central differences of it would be coarse."""
    return LennardJones(sigma=0.5, epsilon=5.0, rc=20.0)


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

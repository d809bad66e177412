"""Random models that hold small molecules together: relaxed in them, they have vibrations like real ones."""

from __future__ import annotations

from functools import cache

import torch
from ase import Atoms
from ase.build import molecule
from torch.utils._pytree import tree_map

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.inference.vibrations import vibrations
from pykinml_func.potential.energy import init_params
from pykinml_func.potential.ensemble import stack_members
from pykinml_func.types import Calibration, Ensemble, Params

Model = tuple[ModelConfig, Params]

_SEED = 57
"""In this one H2O, H2CO, CO, C2H2 and CH4 all have a minimum of their usual shape."""


def bound_model(variant: int = 0, **levels: object) -> Model:
    """Steeper than models are drawn; another variant is a little different."""
    aev = AEVConfig(elements=("C", "H", "O"), n_radial=6, n_angular_radial=3, n_angular=4)
    config = ModelConfig(aev=aev, neurons=(12, 8, 1), activations=("gaussian", "tanh", "identity"), **levels)
    drawn = init_params(config, torch.Generator().manual_seed(_SEED))
    other = init_params(config, torch.Generator().manual_seed(100 + variant))
    share = 0.02 * (variant > 0)
    networks = tree_map(lambda one, two: 4 * (one + share * two), drawn.networks, other.networks)
    return config, Params(networks, drawn.self_energies - 100.0 + 0.1 * variant)


def spread_known(limit: float) -> Ensemble:
    """Three members whose spread is on the scale of `limit` eV."""
    members = [bound_model(variant) for variant in range(3)]
    scales = [torch.tensor([9.0])] * 2
    calibration = Calibration(*scales, torch.tensor(limit))
    return Ensemble(members[0][0], stack_members([params for _, params in members]), calibration)


def upside_down(model: Model) -> Model:
    """The model whose forces point the other way: where one has a minimum, it has a maximum."""
    config, params = model
    (level,) = params.networks
    weights, biases = (*level.weights[:-1], -level.weights[-1]), (*level.biases[:-1], -level.biases[-1])
    return config, Params((level._replace(weights=weights, biases=biases),), params.self_energies)


@cache
def _minimum(name: str) -> Atoms:
    return vibrations(bound_model(), molecule(name), relax=True).atoms


def minimum(name: str) -> Atoms:
    """A molecule, relaxed in `bound_model()`."""
    return _minimum(name).copy()

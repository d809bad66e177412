"""ANI-type neural-network potentials for gas-phase kinetics, written on torch.func.

The names below are the public ones; they are imported when first used, so that the command line starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pykinml_func.version import __version__

if TYPE_CHECKING:
    from pykinml_func.config import AEVConfig, DataConfig, ModelConfig, RunConfig, TrainConfig
    from pykinml_func.data.formats.database import read_databases, write_database
    from pykinml_func.data.formats.sources import read_structures
    from pykinml_func.inference.calculator import PyKinMLCalculator
    from pykinml_func.inference.nn_surr import Nn_surr
    from pykinml_func.inference.predictor import Predictor
    from pykinml_func.inference.selection import select
    from pykinml_func.inference.thermochemistry import Conditions, thermochemistry
    from pykinml_func.inference.vibrations import vibrations
    from pykinml_func.potential.aev import aev_jacobians, aevs
    from pykinml_func.potential.energy import energy, init_params, level_energies
    from pykinml_func.potential.forces import energy_and_forces, level_energies_and_forces
    from pykinml_func.potential.hessian import hessian, hessian_vector_product
    from pykinml_func.training.fit import fit
    from pykinml_func.training.model_file import load_ensemble, load_model, save_ensemble, save_model
    from pykinml_func.training.optimizers import adam, adamw, sgd
    from pykinml_func.training.step import Objective, build_train_step, init_state
    from pykinml_func.types import Batch, Ensemble, Networks, Params, Structures, TrainState

_HOMES = {
    "config": ("AEVConfig", "DataConfig", "ModelConfig", "RunConfig", "TrainConfig"),
    "data.formats.database": ("read_databases", "write_database"),
    "data.formats.sources": ("read_structures",),
    "inference.calculator": ("PyKinMLCalculator",),
    "inference.nn_surr": ("Nn_surr",),
    "inference.predictor": ("Predictor",),
    "inference.selection": ("select",),
    "inference.thermochemistry": ("Conditions", "thermochemistry"),
    "inference.vibrations": ("vibrations",),
    "potential.aev": ("aev_jacobians", "aevs"),
    "potential.energy": ("energy", "init_params", "level_energies"),
    "potential.forces": ("energy_and_forces", "level_energies_and_forces"),
    "potential.hessian": ("hessian", "hessian_vector_product"),
    "training.fit": ("fit",),
    "training.model_file": ("load_ensemble", "load_model", "save_ensemble", "save_model"),
    "training.optimizers": ("adam", "adamw", "sgd"),
    "training.step": ("Objective", "build_train_step", "init_state"),
    "types": ("Batch", "Ensemble", "Networks", "Params", "Structures", "TrainState"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AEVConfig",
    "Batch",
    "Conditions",
    "DataConfig",
    "Ensemble",
    "ModelConfig",
    "Networks",
    "Nn_surr",
    "Objective",
    "Params",
    "Predictor",
    "PyKinMLCalculator",
    "RunConfig",
    "Structures",
    "TrainConfig",
    "TrainState",
    "__version__",
    "adam",
    "adamw",
    "aev_jacobians",
    "aevs",
    "build_train_step",
    "energy",
    "energy_and_forces",
    "fit",
    "hessian",
    "hessian_vector_product",
    "init_params",
    "init_state",
    "level_energies",
    "level_energies_and_forces",
    "load_ensemble",
    "load_model",
    "read_databases",
    "read_structures",
    "save_ensemble",
    "save_model",
    "select",
    "sgd",
    "thermochemistry",
    "vibrations",
    "write_database",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

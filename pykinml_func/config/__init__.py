"""Settings: frozen, validated configs, their names on the command line and in TOML, ours and PyKinML's."""

from pykinml_func.config.aev import AEVConfig
from pykinml_func.config.data import DataConfig
from pykinml_func.config.run import ModelConfig, RunConfig, TrainConfig

__all__ = ["AEVConfig", "DataConfig", "ModelConfig", "RunConfig", "TrainConfig"]

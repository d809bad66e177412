"""Frozen, validated configs: the only place where a default is written. `names` and `build` map names onto them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from pykinml_func.config.aev import AEVConfig, Frozen
from pykinml_func.config.data import DataConfig
from pykinml_func.config.recipes import RECIPES
from pykinml_func.errors import ContradictionError

Activation = Literal["gaussian", "tanh", "identity", "relu", "silu"]


class ModelConfig(Frozen):
    """One network an element: layer sizes, activations, biases, and the AEVs that feed it."""

    aev: AEVConfig = AEVConfig()
    neurons: tuple[PositiveInt, ...] = Field((48, 24, 12, 1), description="nodes of each layer; the last must be 1")
    activations: tuple[Activation, ...] = Field(
        ("gaussian", "gaussian", "gaussian", "identity"),
        description="activation of each layer: gaussian, tanh, identity, relu or silu",
    )
    biases: bool = Field(True, description="biases in the layers")
    pass_aev: bool = Field(True, description="with multi_fidelity: a level above the lowest sees the AEVs")
    pass_energy: bool = Field(
        True, description="with multi_fidelity: a level sees the atomic energy of the level below"
    )
    sum_levels: bool = Field(True, description="with multi_fidelity: a level adds to the energy of the level below")
    fidelities: tuple[int, ...] = Field((1,), min_length=1, description="levels predicted, lowest first")
    baseline: int | None = Field(None, description="level that the energies are relative to, in delta learning")

    @property
    def n_levels(self) -> int:
        """L, the fidelity levels predicted."""
        return len(self.fidelities)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.pass_aev or self.pass_energy):
            raise ValueError(
                "pass_aev and pass_energy must not both be off, or a level would see nothing; leave one of them on"
            )
        if len(self.neurons) != len(self.activations):
            raise ValueError(
                f"activations must be one for each layer of neurons, got {len(self.activations)} for "
                f"{len(self.neurons)} layers"
            )
        if self.neurons[-1:] != (1,):
            raise ValueError(f"neurons must end with 1, the atomic energy, got {', '.join(map(str, self.neurons))}")
        return self


DERIVED = ("fidelities", "baseline")
"""Fields of ModelConfig that are no settings: they follow from those of DataConfig."""


class TrainConfig(Frozen):
    """How the networks are trained."""

    recipe: Literal["standard", "fast"] = Field(
        "standard",
        description="what training settings default to: standard, as given here; fast, for low errors in little time, "
        "on labels with forces",
    )
    epochs: PositiveInt = Field(200, description="epochs to train")
    batch_size: PositiveInt = Field(50, description="training batch size")
    valid_batch_size: PositiveInt = Field(500, description="validation batch size (speed and memory only)")
    test_batch_size: PositiveInt = Field(500, description="test batch size (speed and memory only)")
    optimizer: Literal["adam", "adamw", "sgd", "soap"] = Field(
        "adam", description="adam, adamw, sgd with Nesterov momentum, or soap, which adapts to correlated inputs"
    )
    momentum: float = Field(0.5, ge=0, lt=1, description="Nesterov momentum; needs optimizer sgd")
    weight_decay: float = Field(
        0.0, ge=0, description="adamw and soap: decay of the parameters; adam and sgd: L2 penalty in the gradient"
    )
    learning_rate: PositiveFloat = Field(
        1e-3, description="initial learning rate, or highest with schedule cosine; with keep_optimizer that of the file"
    )
    schedule: Literal["plateau", "exponential", "step", "cosine"] = Field(
        "plateau",
        description="learning rate: plateau drops it when validation stalls, exponential after every epoch, step after "
        "every step_size epochs, cosine lets it fall to 0 over the epochs",
    )
    warmup: int = Field(
        1, ge=0, description="epochs in which the learning rate rises before it falls; needs schedule cosine"
    )
    decay: float = Field(
        0.5, gt=0, lt=1, description="factor of the learning rate at a drop; needs a schedule other than cosine"
    )
    patience: int = Field(
        25, ge=0, description="epochs without improvement before the learning rate drops; needs schedule plateau"
    )
    threshold: float = Field(
        0.05,
        ge=0,
        description="validation RMSE must fall by this to count as improvement [kcal/mol]; needs schedule plateau",
    )
    step_size: PositiveInt = Field(100, description="epochs between drops of the learning rate; needs schedule step")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay, a step, of a running mean of the networks, which is validated and kept in their place; 0: "
        "none",
    )
    forces: bool = Field(False, description="train to forces too")
    force_weight: float = Field(
        0.3, ge=0, le=1, description="weight w in (1 - w) energy loss [eV²] + w force loss [eV²/Å²]; needs forces"
    )
    force_weight_end: float | None = Field(
        None, ge=0, le=1, description="force_weight of the last epoch, gone to in equal steps; default: the first's"
    )
    learn_loss_weights: bool = Field(
        False, description="learn the weights of the losses (energies and forces of each level) with the networks"
    )
    force_path: Literal["auto", "jacobian", "positions"] = Field(
        "auto",
        description="forces from cached AEV Jacobians, or from positions; auto: positions where AEVs are compiled (on "
        "a CPU), else Jacobians where memory allows",
    )
    start_from: Path | None = Field(None, description="model or checkpoint whose networks training starts from")
    keep_optimizer: bool = Field(
        False, description="go on with the optimizer's state and learning rate of the checkpoint in start_from"
    )
    seeds: tuple[int, int] = Field((0, 1), description="seeds of the split, and of weights and shuffles")
    ensemble: PositiveInt = Field(
        1,
        description="members trained at once, each from a seed of its own: the second of seeds, and those that follow",
    )
    ensemble_data: Literal["all", "shared", "bootstrap", "folds"] = Field(
        "all",
        description="what each member trains on: all training structures, shuffled by its own seed; shared, all in the "
        "same batches, which takes the least time; bootstrap, as many drawn with replacement; folds, all but a fold of "
        "its own; needs ensemble",
    )
    order: Literal["shuffled", "fixed"] = Field(
        "shuffled", description="reshuffle batches each epoch, or keep PyKinML's fixed order"
    )
    precision: Literal["float64", "float32"] = Field("float64", description="number format of AEVs and networks")
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="torch.compile of the steps; auto: in training long enough to repay it (25,000 steps)",
    )
    device: str = Field(
        "cpu", description="torch device, such as cpu or cuda:0; cuda:0,1 is a rank on each of these GPUs"
    )
    ranks: PositiveInt = Field(
        1,
        description="processes of this machine that train together, each on a share of every batch; with torchrun its",
    )
    fsdp: bool = Field(
        False, description="cut parameters and optimizer among the ranks (fully_shard), in place of a copy for each"
    )
    scale_lr: bool = Field(
        False,
        description="multiply learning_rate by the number of ranks, for a batch_size that was multiplied by it too",
    )
    threads: int = Field(0, ge=0, description="CPU threads; 0: one for small batches, else torch's choice")
    save_every: PositiveInt = Field(10, description="epochs between checkpoints")
    output: Path = Field(Path("runs/model"), description="run directory: model, checkpoints, metrics, figures")

    @field_validator("optimizer", "schedule", mode="before")
    @classmethod
    def _plain_name(cls, value: Any) -> Any:
        """PyKinML's spellings: Adam, rop, exp."""
        name = value.lower() if isinstance(value, str) else value
        return {"rop": "plateau", "exp": "exponential"}.get(name, name) if isinstance(name, str) else name

    @model_validator(mode="before")
    @classmethod
    def _follow_recipe(cls, values: Any) -> Any:
        """The recipe's values where none was given, but for those that mean nothing beside what was given."""
        recipe = RECIPES.get(values.get("recipe", "standard")) if isinstance(values, dict) else None
        if not recipe:
            return values
        if "force_weight" in values:  # a weight of one's own stays
            recipe = {name: value for name, value in recipe.items() if name != "force_weight_end"}
        filled = recipe | values
        plain = {name: cls._plain_name(filled[name]) for name in ("optimizer", "schedule")}
        meaningless = cls.model_construct(**filled | plain).inapplicable()
        return {name: value for name, value in filled.items() if name in values or name not in meaningless}

    @model_validator(mode="before")
    @classmethod
    def _rank_a_gpu(cls, values: Any) -> Any:
        """As many ranks as GPUs are named."""
        n_gpus = len(_gpus(values.get("device"))) if isinstance(values, dict) else 0
        return {"ranks": n_gpus} | values if n_gpus > 1 else values

    @model_validator(mode="after")
    def _check(self) -> Self:
        gpus = _gpus(self.device)
        if len(set(gpus)) < len(gpus):
            raise ValueError(f"device must name each GPU once, got {self.device}")
        if gpus and len(gpus) != self.ranks:
            raise ContradictionError(
                f"ranks must be as many as the GPUs of device, got {self.ranks} and {self.device}; leave ranks out, or "
                "name more GPUs or none (device = cuda)",
                either=("ranks",),
                given=("device", "ddp", "gpus"),
            )
        if self.fsdp and self.ensemble > 1:
            raise ContradictionError(
                f"fsdp cuts one model among the ranks, got ensemble = {self.ensemble}; leave one of them out",
                either=("fsdp",),
                given=("ensemble",),
            )
        seeds = (self.seeds[0], *self.member_seeds)
        if not all(0 <= seed < 2**63 for seed in seeds):
            raise ValueError(f"seeds must be from 0 to 2**63 - 1, got {', '.join(map(str, seeds))}")
        given = self.inapplicable() & self.model_fields_set
        for name, other in (
            ("force_weight", "learn_loss_weights"),
            ("force_weight_end", "learn_loss_weights"),
            ("learning_rate", "keep_optimizer"),
        ):
            if name in given and getattr(self, other):
                raise ContradictionError(
                    f"{name} and {other} contradict each other, got {name} = {getattr(self, name)}; leave one of them "
                    "out",
                    either=(name, other),
                )
        for name in sorted(given):
            others, needed = _NEEDS[name]
            raise ContradictionError(
                f"{name} needs {needed}, got {name} = {getattr(self, name)} without; add {needed}, or leave it out",
                either=(name,),
                given=others,
            )
        return self

    @property
    def member_seeds(self) -> tuple[int, ...]:
        """(E,) seeds of each member's weights and shuffles."""
        return tuple(self.seeds[1] + place for place in range(self.ensemble))

    def inapplicable(self) -> set[str]:
        """The settings that mean nothing beside the others; giving one of them is a mistake."""
        applies = {
            "force_weight": self.force_weight == 0 or (self.forces and not self.learn_loss_weights),
            "force_weight_end": self.force_weight_end is None or (self.forces and not self.learn_loss_weights),
            "learning_rate": not self.keep_optimizer,
            "momentum": self.optimizer == "sgd",
            "warmup": self.schedule == "cosine",
            "decay": self.schedule != "cosine",
            "patience": self.schedule == "plateau",
            "threshold": self.schedule == "plateau",
            "step_size": self.schedule == "step",
            "keep_optimizer": self.start_from is not None or not self.keep_optimizer,
            "ensemble_data": self.ensemble != 1 or self.ensemble_data == "all",
        }
        return {name for name, holds in applies.items() if not holds}

    def departures(self) -> list[str]:
        """The settings of the recipe that have other values."""
        idle = self.inapplicable()
        recipe = RECIPES[self.recipe].items()
        return [name for name, value in recipe if name not in idle and getattr(self, name) not in (value, None)]


def _gpus(device: Any) -> list[str]:
    """The numbers that a device such as cuda:0,1 names."""
    numbers = device.partition(":")[2] if isinstance(device, str) else ""
    return numbers.split(",") if numbers else []


_NEEDS = {
    "force_weight": (("forces", "recipe"), "forces"),
    "force_weight_end": (("forces", "recipe"), "forces"),
    "momentum": (("optimizer", "recipe"), "optimizer = sgd"),
    "warmup": (("schedule", "recipe"), "schedule = cosine"),
    "decay": (("schedule", "recipe"), "schedule = plateau, exponential or step"),
    "patience": (("schedule", "recipe"), "schedule = plateau"),
    "threshold": (("schedule", "recipe"), "schedule = plateau"),
    "step_size": (("schedule", "recipe"), "schedule = step"),
    "keep_optimizer": (("start_from", "load_model"), "start_from"),
    "ensemble_data": (("ensemble",), "ensemble = 2 or more"),
}
"""What a setting means nothing without: the settings, and the words for it."""


class RunConfig(Frozen):
    """Everything that `pykinml train` needs; a run's `config.toml` is one of these."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        model, multi_fidelity = self.model, self.data.multi_fidelity
        off = [name for name in ("pass_aev", "pass_energy", "sum_levels") if not getattr(model, name)]
        if off and not multi_fidelity:
            raise ContradictionError(
                f"{off[0]} needs multi_fidelity, got it off; add multi_fidelity, or leave {off[0]} out",
                either=(off[0],),
                given=("multi_fidelity",),
            )
        if self.training.learn_loss_weights and not (self.training.forces or multi_fidelity):
            raise ContradictionError(
                "learn_loss_weights needs forces or multi_fidelity, since one loss has nothing to be weighed against; "
                "add one of them, or leave it out",
                either=("learn_loss_weights",),
                given=("forces", "multi_fidelity"),
            )
        own = tuple(sorted(model.aev.own_grids))
        if self.data.aev_backend == "aevmod" and own:
            raise ContradictionError(
                f"aev_backend aevmod and {', '.join(own)} contradict each other: aevmod computes only the grids of its "
                "own rule; leave one of them out",
                either=("aev_backend", *own),
            )
        return self

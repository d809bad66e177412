"""Frozen, validated settings: TOML in, TOML out. The only place where a default is written.

Each setting has one name, unique in all sections, and may have PyKinML's name as an alias (`ALIASES`).
"""

from __future__ import annotations

import difflib
import glob
import math
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args, get_origin

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from pykinml_func.errors import ConfigError
from pykinml_func.files import write_atomically

Activation = Literal["gaussian", "tanh", "identity", "relu", "silu"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AEVConfig(_Frozen):
    """Atomic environment vectors: cutoffs and grids.

    The grids default to aevmod's rule: shifts at the centres of equal intervals up to the cutoff, Gaussians of
    width 2/3 of an interval, zeta 8, angular sections spread evenly over [0, pi]. Grids that are given
    (`radial_shifts` and so on; for ANI-1x and 2x, say) take the place of the rule and of its counts.
    """

    elements: tuple[str, ...] = Field(
        (), description="element symbols, in the order of the networks; default: those of the formulas"
    )
    radial_cutoff: PositiveFloat = Field(5.2, description="radial cutoff [Å]")
    angular_cutoff: PositiveFloat = Field(3.8, description="angular cutoff [Å]")
    n_radial: PositiveInt = Field(16, description="radial shells")
    n_angular_radial: PositiveInt = Field(8, description="radial shells of the angular part")
    n_angular: PositiveInt = Field(8, description="angular sections")
    beta: float = Field(0.95, gt=0, le=1, description="scale of cos(theta) in the angular part")
    radial_eta: PositiveFloat = Field(
        None, validate_default=False, description="radial Gaussian exponent [1/Å²]; default: aevmod's rule"
    )  # type: ignore[assignment]
    angular_eta: PositiveFloat = Field(
        None,
        validate_default=False,
        description="exponent of the angular part's Gaussians [1/Å²]; default: aevmod's rule",
    )  # type: ignore[assignment]
    zeta: float = Field(8.0, ge=1, description="exponent of the angular sections")
    radial_shifts: tuple[float, ...] = Field(
        (), description="centres of the radial Gaussians [Å]; default: aevmod's rule"
    )
    angular_shifts: tuple[float, ...] = Field(
        (), description="centres of the angular part's Gaussians [Å]; default: aevmod's rule"
    )
    angular_sections: tuple[float, ...] = Field(
        (), description="angles of the angular sections [rad]; default: aevmod's rule"
    )
    radial_prefactor: PositiveFloat = Field(1.0, description="factor of every radial term")
    angular_prefactor: PositiveFloat = Field(1.0, description="factor of every angular term")

    @model_validator(mode="before")
    @classmethod
    def _fill_grids(cls, values: Any) -> Any:
        """Counts follow given grids; the grids that are missing follow aevmod's rule (its class `aev`)."""
        given = dict(values)
        for count, grid in _GRIDS.items():
            if isinstance(given.get(grid), list | tuple) and given[grid]:
                given.setdefault(count, len(given[grid]))
        if not all(_is_number(given.get(name, 1)) for name in ("radial_cutoff", "angular_cutoff")):
            return given
        if not all(_is_number(given.get(count, 1)) and float(given.get(count, 1)).is_integer() for count in _GRIDS):
            return given
        for part, count in (("radial", "n_radial"), ("angular", "n_angular_radial")):
            cutoff = float(given.get(f"{part}_cutoff", cls.model_fields[f"{part}_cutoff"].default))
            shells = int(float(given.get(count, cls.model_fields[count].default)))
            if cutoff <= 0 or shells < 1:
                return given
            width = cutoff / shells
            given.setdefault(f"{part}_eta", 1 / (2 / 3 * width) ** 2)
            if not given.get(f"{part}_shifts"):
                given[f"{part}_shifts"] = tuple(width * (k + 0.5) for k in range(shells))
        sections = int(float(given.get("n_angular", cls.model_fields["n_angular"].default)))
        if sections >= 1 and not given.get("angular_sections"):
            given["angular_sections"] = tuple(math.pi * k / max(sections - 1, 1) for k in range(sections))
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.elements)) != len(self.elements):
            raise ValueError(f"elements must differ from each other, got {', '.join(self.elements)}")
        if self.elements:
            from ase.data import chemical_symbols

            unknown = [symbol for symbol in self.elements if symbol not in chemical_symbols[1:]]  # [0] is X, a dummy
            if unknown:
                raise ValueError(f"elements must be chemical symbols, such as C or Cl, got {', '.join(unknown)}")
        for count, grid in _GRIDS.items():
            if len(getattr(self, grid)) != getattr(self, count):
                raise ValueError(
                    f"{count} must be the length of {grid}, got {getattr(self, count)} and "
                    f"{len(getattr(self, grid))}; leave one of them out"
                )
        return self

    def by_rule(self) -> AEVConfig:
        """The same elements, cutoffs, counts and beta with aevmod's grids."""
        return AEVConfig(**{name: value for name, value in self if name not in GRID_FIELDS})

    @property
    def length(self) -> int:
        """D, the length of one atom's AEV."""
        species = len(self.elements)
        return species * self.n_radial + species * (species + 1) // 2 * self.n_angular_radial * self.n_angular


GRID_FIELDS = (
    "radial_eta",
    "angular_eta",
    "zeta",
    "radial_shifts",
    "angular_shifts",
    "angular_sections",
    "radial_prefactor",
    "angular_prefactor",
)
"""What aevmod's rule fills in."""

_GRIDS = {"n_radial": "radial_shifts", "n_angular_radial": "angular_shifts", "n_angular": "angular_sections"}


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


class ModelConfig(_Frozen):
    """One network an element: layer sizes, activations, biases, and the AEVs that feed it."""

    aev: AEVConfig = AEVConfig()
    neurons: tuple[PositiveInt, ...] = Field((48, 24, 12, 1), description="nodes of each layer; the last must be 1")
    activations: tuple[Activation, ...] = Field(
        ("gaussian", "gaussian", "gaussian", "identity"),
        description="activation of each layer: gaussian, tanh, identity, relu or silu",
    )
    biases: bool = Field(True, description="biases in the layers")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.neurons) != len(self.activations):
            raise ValueError(
                f"activations must be one for each layer of neurons, got {len(self.activations)} for "
                f"{len(self.neurons)} layers"
            )
        if self.neurons[-1:] != (1,):
            raise ValueError(f"neurons must end with 1, the atomic energy, got {', '.join(map(str, self.neurons))}")
        return self


class DataConfig(_Frozen):
    """Which structures are read, and how they are divided."""

    input: tuple[str, ...] = Field((), description="PyKinML SQLite databases, each named by its formula; globs allowed")
    fidelity: int = Field(1, ge=0, description="fidelity level to train to")
    names: tuple[str, ...] = Field(
        (), description="keep structures whose name matches one of these SQL LIKE patterns; default: all"
    )
    temperature: float | None = Field(None, description="keep structures sampled at this temperature [K]; default: all")
    split_files: tuple[str, ...] = Field(
        (),
        description="files of `DATABASE/xyz_id 2|-1` lines: 2 trains or validates, -1 tests; default: a random split",
    )
    split: tuple[float, ...] = Field(
        (0.8, 0.1, 0.1),
        description="train, validation, test: counts, or fractions that sum to at most 1; with split files, counts "
        "of train and validation within them (test 0: all of the files' test structures)",
    )
    fit_self_energies: bool = Field(True, description="fit single-atom energies and subtract them")
    prepared: Path = Field(Path("prepared"), description="directory that holds the prepared sets (AEVs on disk)")
    aev_backend: Literal["native", "aevmod"] = Field("native", description="native (torch) or aevmod")

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_split(self.split, bool(self.split_files))
        return self


def check_split(split: tuple[float, ...], from_files: bool) -> None:
    """Raises ValueError unless `split` is three counts or fractions as DataConfig.split says."""
    shown = ", ".join(f"{v:g}" for v in split)
    if len(split) not in (2, 3) or any(v < 0 for v in split):
        raise ValueError(f"split must be two or three numbers of 0 or more (train, validation[, test]), got {shown}")
    whole = all(float(v).is_integer() for v in split)
    if not whole and (sum(split) > 1 + 1e-9 or max(split) > 1):
        raise ValueError(f"split fractions must sum to at most 1, got {shown}; give counts instead")
    if split[0] == 0:
        raise ValueError(f"split must leave something to train on, got {shown}")
    if from_files and not whole:
        raise ValueError(f"split must be counts when split_files is given, got {shown}; e.g. 2000, 48, 0")


class TrainConfig(_Frozen):
    """How the networks are trained."""

    epochs: PositiveInt = Field(200, description="epochs to train")
    batch_size: PositiveInt = Field(50, description="training batch size")
    valid_batch_size: PositiveInt = Field(500, description="validation batch size (speed and memory only)")
    test_batch_size: PositiveInt = Field(500, description="test batch size (speed and memory only)")
    learning_rate: PositiveFloat = Field(1e-3, description="initial learning rate of Adam")
    patience: int = Field(25, ge=0, description="epochs without improvement before the learning rate drops")
    threshold: float = Field(
        0.05, ge=0, description="validation RMSE must fall by this to count as improvement [kcal/mol]"
    )
    decay: float = Field(0.5, gt=0, lt=1, description="factor of the learning rate at a drop")
    forces: bool = Field(False, description="train to forces too")
    force_weight: float = Field(
        0.3, ge=0, le=1, description="weight w in (1 - w) energy loss [eV²] + w force loss [eV²/Å²]; needs forces"
    )
    force_path: Literal["auto", "jacobian", "positions"] = Field(
        "auto", description="forces from cached AEV Jacobians, or from positions; auto: Jacobians where memory allows"
    )
    seeds: tuple[int, int] = Field((0, 1), description="seeds of the split, and of weights and shuffles")
    order: Literal["shuffled", "fixed"] = Field(
        "shuffled", description="reshuffle batches each epoch, or keep PyKinML's fixed order"
    )
    precision: Literal["float64", "float32"] = Field("float64", description="number format of AEVs and networks")
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile of the steps; auto: when the run is long enough to repay it"
    )
    device: str = Field("cpu", description="torch device, such as cpu or cuda:0")
    threads: int = Field(0, ge=0, description="CPU threads; 0: one for small batches, else torch's choice")
    save_every: PositiveInt = Field(10, description="epochs between checkpoints")
    output: Path = Field(Path("runs/model"), description="run directory: model, checkpoints, metrics, figures")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 <= seed < 2**63 for seed in self.seeds):
            raise ValueError(f"seeds must be from 0 to 2**63 - 1, got {', '.join(map(str, self.seeds))}")
        if "force_weight" in self.model_fields_set and self.force_weight > 0 and not self.forces:
            raise ValueError(
                f"force_weight needs forces, got force_weight = {self.force_weight:g} with forces off; add forces, "
                "or leave force_weight out"
            )
        return self


class RunConfig(_Frozen):
    """Everything that `pykinml train` needs; a run's `config.toml` is one of these."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainConfig = TrainConfig()


class Setting(NamedTuple):
    """One setting as the command line and TOML see it."""

    name: str
    section: tuple[str, ...]
    """such as ('model', 'aev')"""
    description: str
    default: Any
    annotation: Any


def settings(model: type[BaseModel] = RunConfig, section: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Every setting of `model`, in the order of the classes."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings(field.annotation, (*section, name))
        else:
            yield Setting(name, section, field.description or "", field.default, field.annotation)


SETTINGS: dict[str, Setting] = {setting.name: setting for setting in settings()}

ALIASES: dict[str, tuple[str, ...]] = {
    "input_data_fname": ("input",),
    "fidlevel": ("fidelity",),
    "nameset": ("names",),
    "temp": ("temperature",),
    "trtsid_name": ("split_files",),
    "tvt": ("split",),
    "sae_fit": ("fit_self_energies",),
    "data_path": ("prepared",),
    "present_elements": ("elements",),
    "aev_params": ("n_radial", "n_angular_radial", "n_angular"),
    "cuttoff_radius": ("radial_cutoff", "angular_cutoff"),
    "my_neurons": ("neurons",),
    "my_actfn": ("activations",),
    "tr_batch_size": ("batch_size",),
    "vl_batch_size": ("valid_batch_size",),
    "ts_batch_size": ("test_batch_size",),
    "LR_patience": ("patience",),
    "LR_threshold": ("threshold",),
    "decayrate": ("decay",),
    "floss": ("forces",),
    "fw": ("force_weight",),
    "randomseed": ("seeds",),
    "num_cores": ("threads",),
    "savenm": ("output",),
}
"""PyKinML's names for our settings; a name of several takes a list, one value for each."""

NOT_YET = (
    "pre_saved",
    "load_model",
    "load_model_name",
    "optimize_force_weight",
    "optimizer",
    "lrscheduler",
    "delta",
    "multi_fid",
    "ddp",
    "gpus",
    "input_data_type",
    "fidlevel_lf",
    "momentum",
    "weight_decay",
    "write_tvtmsk",
    "read_trid",
)
"""PyKinML's names for what this package does not do yet."""

PATH_LISTS = ("input", "split_files")
"""Lists of paths and globs, which are never cut at commas."""


def canonical(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` under our names. Raises ConfigError for an unknown name or a setting given under two names."""
    by_lower_name = {name.lower(): names for name, names in ALIASES.items()}
    resolved: dict[str, Any] = {}
    source: dict[str, str] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name.lower() in NOT_YET:
            raise ConfigError(f"{key} is PyKinML's, and not there yet; leave it out")
        targets: tuple[str, ...]
        if name.lower() == "no_biases":
            if not isinstance(value, bool):
                raise ConfigError(f"{key} must be true or false, got {value!r}")
            targets, values = ("biases",), [not value]
        else:
            targets = (name,) if name in SETTINGS else by_lower_name.get(name.lower(), ())
            values = [_listed(targets[0], value)] if len(targets) == 1 else _cut(value)
        if not targets:
            known = difflib.get_close_matches(name, [*SETTINGS, *ALIASES, "no_biases"], n=1)
            hint = f"; did you mean {known[0]}?" if known else "; `pykinml train --help` lists them"
            raise ConfigError(f"unknown setting {key!r}{hint}")
        if not isinstance(values, tuple | list) or len(values) != len(targets):
            raise ConfigError(f"{key} must be {len(targets)} values ({', '.join(targets)}), got {value!r}")
        for target, each in zip(targets, values, strict=True):
            if target in resolved:
                raise ConfigError(f"{source[target]} and {key} set the same thing ({target}); give one of them")
            resolved[target], source[target] = each, key
    return resolved


def _listed(name: str, value: Any) -> Any:
    """Text for a setting that is a list, cut at its commas."""
    if not isinstance(value, str) or get_origin(SETTINGS[name].annotation) is not tuple:
        return value
    return [value] if name in PATH_LISTS else _cut(value)


def _cut(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def build_config(given: Mapping[str, Any]) -> RunConfig:
    """A RunConfig from settings under our or PyKinML's names. Raises ConfigError."""
    tree: dict[str, Any] = {}
    for name, value in canonical(given).items():
        branch = tree
        for section in SETTINGS[name].section:
            branch = branch.setdefault(section, {})
        branch[name] = value
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item) for item in error.errors())) from None


_PLAIN_WORDS = {
    "tuple_type": "a list",
    "string_type": "text",
    "path_type": "a path",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
}
"""What pydantic's error types say in the words of a user."""


def _explain(item: Mapping[str, Any]) -> str:
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    name = next((str(part) for part in reversed(item["loc"]) if isinstance(part, str) and part in SETTINGS), "setting")
    if item["type"] in ("missing", "too_long"):
        message = f"{len(get_args(SETTINGS[name].annotation))} values"
    else:
        message = _PLAIN_WORDS.get(item["type"]) or item["msg"].removeprefix("Input should be ")
    return f"{name} must be {message}, got {item['input']!r}"


def read_toml(path: Path) -> dict[str, Any]:
    """Settings of a TOML file, flat; `input` and `split_files` become relative to the file's folder.

    Sections ([data], [model], [model.aev], [training]) are for the reader: a setting may stand in any, or at the top.
    Raises ConfigError for a file that cannot be read, another section, or a setting that stands in two places.
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"SQLite format 3"):
            raise ConfigError(
                f"the configuration must be a TOML file, got {path}, a database; quote globs (--input 'data/*.db') or "
                "repeat --input before each database"
            )
        tree = tomllib.loads(content.decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no configuration file {path}") from None
    except OSError as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} must be TOML: {error}") from None
    given: dict[str, Any] = {}
    places: dict[str, str] = {}
    for section, key, value in _leaves(tree, path):
        place = f"in [{'.'.join(section)}]" if section else "at the top"
        if key in given:
            raise ConfigError(f"{path} sets {key} {places[key]} and {place}; keep one of them")
        given[key], places[key] = value, place
    flat = canonical(given)
    if isinstance(flat.get("input"), list):
        flat["input"] = [_from_folder(path.parent, str(entry)) for entry in flat["input"]]
    if isinstance(flat.get("split_files"), list):
        flat["split_files"] = [str(path.parent / str(entry)) for entry in flat["split_files"]]
    return flat


def _leaves(
    tree: Mapping[str, Any], path: Path, section: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """Section, name and value of each setting."""
    for key, value in tree.items():
        if not isinstance(value, Mapping):
            yield section, key, value
            continue
        inner = (*section, key)
        if inner not in {setting.section for setting in SETTINGS.values()}:
            name, names = ".".join(inner), sorted({".".join(setting.section) for setting in SETTINGS.values()})
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean [{close[0]}]?" if close else f"the sections are [{'], ['.join(names)}]"
            raise ConfigError(f"unknown section [{name}] in {path}; {hint}")
        yield from _leaves(value, path, inner)


def _from_folder(folder: Path, pattern: str) -> str:
    """A path or glob that is meant from `folder`, whose own name is taken as it is."""
    literal = folder / pattern
    return str(literal if literal.is_file() else Path(glob.escape(str(folder))) / pattern)


def write_toml(path: Path, config: RunConfig) -> None:
    """Write every setting, so that `pykinml train PATH` runs the same again.

    Links are not followed, since a database's name is its formula. Grids that follow the rule are left out, so that
    they follow a cutoff or a count that is changed later.
    """
    tree = config.model_dump(mode="json", exclude_none=True)
    tree["data"] |= {
        "input": [_from_folder(Path.cwd(), pattern) for pattern in config.data.input],
        "split_files": [str(Path(name).absolute()) for name in config.data.split_files],
        "prepared": str(config.data.prepared.absolute()),
    }
    aev, rule = config.model.aev, config.model.aev.by_rule()
    own = {name for name in GRID_FIELDS if getattr(aev, name) != getattr(rule, name)}
    for name in {*GRID_FIELDS} - own | {count for count, grid in _GRIDS.items() if grid in own}:
        del tree["model"]["aev"][name]
    if config.training.force_weight > 0 and not config.training.forces:
        del tree["training"]["force_weight"]  # the default, which reads as a contradiction when it is given
    text = tomlkit.dumps(tree)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

"""The rows of `bench.compare`: what each tool is asked, in which variants, and what we are to reach.

Every figure is on C5H5 (2112 structures; 2000 train in batches of 50, 48 validate), networks 224-48-24-12-1 for C and H
with Gaussians and without biases, in float64 unless the row says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from pykinml_func.errors import PyKinMLError

TOOLS = {"own": "pykinml_func", "pykinml": "PyKinML", "torchani": "TorchANI", "fennol": "FeNNol"}
Figure = Literal["seconds", "rate", "ratio", "peak_bytes"]


class Ask(NamedTuple):
    """One variant of a row for one tool."""

    variant: str
    request: dict[str, Any]
    dtype: str = "float64"
    slow: bool = False
    """whether it takes minutes: measured twice at most, and not warmed up"""
    before: dict[str, Any] | None = None
    """what another process is asked first, where each measurement has a process of its own"""


class Row(NamedTuple):
    """One row: its best variant of each tool is compared."""

    name: str
    title: str
    figure: Figure
    asks: dict[str, tuple[Ask, ...] | str]
    """of each tool, or why it has no part"""
    targets: dict[str, float] = {}  # noqa: RUF012 (never changed)
    """how many times better than a tool we are to be"""
    limit: float | None = None
    """what our figure is not to exceed, in the figure's unit"""
    note: str = ""
    fresh: bool = False
    """a process for each measurement"""


def _modes(request: dict[str, Any], dtype: str = "float64", modes: str = "eager script compile") -> tuple[Ask, ...]:
    """TorchANI's."""
    size = f", batches of {request['batch']}" if "batch" in request else ""
    return tuple(Ask(mode + size, {**request, "mode": mode}, dtype) for mode in modes.split())


def _graphs(request: dict[str, Any], dtype: str = "float64") -> tuple[Ask, ...]:
    """FeNNol's."""
    size = f", batches of {request['batch']}" if "batch" in request else ""
    return tuple(Ask(f"{kind} graphs{size}", {**request, "graphs": kind}, dtype) for kind in ("cpu", "jit"))


def _own_forces(dtype: str, epochs: int = 6) -> tuple[Ask, ...]:
    settings = {path: {"forces": True, "force_path": path} for path in ("jacobian", "positions")}
    return tuple(
        Ask(path, {"task": "epoch", "epochs": epochs, **each}, dtype, before={"task": "prepare_set", **each})
        for path, each in settings.items()
    )


def _force_asks(dtype: str) -> dict[str, tuple[Ask, ...] | str]:
    request = {"task": "epoch", "forces": True}
    before = {"task": "prepare_set", "forces": True}
    pykinml = Ask("its trainer", {**request, "epochs": 1}, slow=True, before=before)
    return {
        "own": _own_forces(dtype),
        "pykinml": (pykinml,) if dtype == "float64" else "trains in float64 only",
        "torchani": _modes({**request, "cached": False, "epochs": 2}, dtype),
        "fennol": _graphs({**request, "epochs": 2}, dtype),
    }


def _memory_asks() -> dict[str, tuple[Ask, ...] | str]:
    """One epoch each; torch.compile does not train to forces, and eager takes no less than a script."""
    request = {"task": "epoch", "forces": True, "epochs": 1}
    asks = _force_asks("float64")
    one = tuple(ask._replace(request={**ask.request, "epochs": 1}) for ask in _own_forces("float64"))
    torchani = _modes({**request, "cached": False}, modes="eager script")
    return {"own": one, "pykinml": asks["pykinml"], "torchani": torchani, "fennol": _graphs(request)}


def _many_asks(dtype: str) -> dict[str, tuple[Ask, ...] | str]:
    request = {"task": "many_structures"}
    small, middle, large = ({**request, "batch": batch} for batch in (16, 48, 528))
    uncompiled = tuple(ask for each in (small, large) for ask in _modes(each, dtype, "eager script"))
    return {
        "own": (Ask("Predictor.predict", {"task": "predict"}, dtype),),
        "pykinml": "has no forces of several structures at once",
        "torchani": (*uncompiled, *_modes(middle, dtype)),
        "fennol": tuple(ask for each in (small, middle, large) for ask in _graphs(each, dtype)),
    }


_OWN_ENERGIES = Ask("fit", {"task": "epoch", "epochs": 12})
_PYKINML_ENERGIES = Ask("its trainer", {"task": "epoch", "forces": False, "epochs": 5})
_AEVS = {"task": "aevs", "batch": 48}
_ONE = {"task": "one_structure", "calls": 200}
_ENSEMBLE = {"task": "ensemble", "calls": 100}
_FEW_CALLS = Ask("its calculator", {"task": "one_structure", "calls": 40})
_NO_JACOBIANS = "stores no Jacobians: it differentiates through the AEVs in every step"
_NO_ENSEMBLE = "has no ensemble of whole models in its calculator"

ROWS: tuple[Row, ...] = (
    Row(
        "aevs",
        "AEVs of 2112 structures",
        "seconds",
        {
            "own": (Ask("native", {"task": "aevs"}),),
            "pykinml": (Ask("aevmod", {"task": "aevs"}),),
            "torchani": (*_modes(_AEVS), *_modes({**_AEVS, "batch": 528}, modes="eager script")),
            "fennol": _graphs(_AEVS),
        },
        {"pykinml": 40, "torchani": 10},
    ),
    Row(
        "prepare",
        "AEVs + Jacobians, prepared on disk",
        "seconds",
        {
            "own": (Ask("prepare", {"task": "prepare"}),),
            "pykinml": (Ask("prep_data", {"task": "prepare"}, slow=True),),
            "torchani": _NO_JACOBIANS,
            "fennol": _NO_JACOBIANS,
        },
        {"pykinml": 50},
    ),
    Row(
        "energy_epoch",
        "energy epoch, AEVs cached",
        "seconds",
        {
            "own": (_OWN_ENERGIES,),
            "pykinml": (_PYKINML_ENERGIES,),
            "torchani": _modes({"task": "epoch", "cached": True, "forces": False, "epochs": 8}),
            "fennol": "its training computes AEVs anew in every step; see the next row",
        },
        {"pykinml": 15, "torchani": 2},
    ),
    Row(
        "energy_epoch_uncached",
        "energy epoch, AEVs not cached",
        "seconds",
        {
            "own": (_OWN_ENERGIES,),
            "pykinml": "caches AEVs always; see the row before",
            "torchani": _modes({"task": "epoch", "cached": False, "forces": False, "epochs": 3}),
            "fennol": _graphs({"task": "epoch", "forces": False, "epochs": 3}),
        },
        note="pykinml_func caches AEVs always: its figure is that of the row before, measured again beside these tools",
    ),
    Row(
        "force_epoch",
        "energy + force epoch",
        "seconds",
        _force_asks("float64"),
        {"pykinml": 250, "torchani": 4, "fennol": 3},
    ),
    Row("force_epoch_f32", "energy + force epoch, float32", "seconds", _force_asks("float32")),
    Row(
        "force_memory",
        "peak memory of a force epoch",
        "peak_bytes",
        _memory_asks(),
        limit=0.6e9,
        note="a process for each measurement; PyKinML's and our data were prepared by others before",
        fresh=True,
    ),
    Row(
        "one_structure",
        "one structure, E + F, by the ASE calculator",
        "seconds",
        {
            "own": (Ask("PyKinMLCalculator", _ONE),),
            "pykinml": (_FEW_CALLS,),
            "torchani": _modes(_ONE, modes="eager script"),
            "fennol": _graphs(_ONE),
        },
        {"pykinml": 40, "torchani": 4, "fennol": 2},
        limit=0.5e-3,
        note="PyKinML's forces are no gradient here: its calculator has beta 0.95, where aevmod's eval_Jac is wrong",
    ),
    Row("many_structures", "many structures, E + F", "rate", _many_asks("float64"), {"torchani": 3, "fennol": 5}),
    Row(
        "many_structures_f32",
        "many structures, E + F, float32",
        "rate",
        _many_asks("float32"),
        {"torchani": 3, "fennol": 5},
    ),
    Row(
        "ensemble",
        "ensemble of 8, E + F, over one member",
        "ratio",
        {
            "own": (Ask("PyKinMLCalculator", _ENSEMBLE),),
            "pykinml": "its calculator fails on ensembles",
            "torchani": _modes(_ENSEMBLE, modes="eager script"),
            "fennol": _NO_ENSEMBLE,
        },
        limit=3,
    ),
    Row(
        "cold_start",
        "cold start of `pykinml predict`, one structure",
        "seconds",
        {
            "own": (Ask("pykinml predict", {"task": "cold_start"}),),
            **dict.fromkeys(("pykinml", "torchani", "fennol"), "has no such command"),
        },
        limit=3,
    ),
)


def find(names: Sequence[str]) -> tuple[Row, ...]:
    """The rows of these names, or all. Raises PyKinMLError with the names there are."""
    known = {row.name: row for row in ROWS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise PyKinMLError(f"--only must be one of {', '.join(known)}, got {', '.join(unknown)}")
    return tuple(known[name] for name in names) or ROWS

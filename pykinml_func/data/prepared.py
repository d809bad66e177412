"""The prepared set: structures, AEVs and Jacobians on disk, memory-mapped, made once for the same data and settings.

A set is a directory named by a hash of what made it: the input files' bytes, the levels and filters, the AEV settings,
the backend and the precision. Each file is one `.npy` array; AEVs and Jacobians are added when a run first needs them.
The directory alone is all that training needs (`pre_saved`). Arrays stay on disk: their pages are read when they are
looked at, and may be dropped again, so that a set may be larger than memory.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pykinml_func.config.aev import AEVConfig
from pykinml_func.config.data import DataConfig
from pykinml_func.data.featurize import check_backend
from pykinml_func.data.formats.rows import Query, some, source_label
from pykinml_func.data.formats.sources import find_inputs, input_format
from pykinml_func.data.manifest import (
    FORMAT,
    MANIFEST,
    Manifest,
    corrupted,
    data_config_of_set,
    find_set,
    read_manifest,
)
from pykinml_func.data.preparing.checked_arrays import open_array, open_computed
from pykinml_func.data.preparing.computed import Features, compute
from pykinml_func.data.preparing.making import Reading, make_set, remove_if_empty
from pykinml_func.data.splits import read_split_files
from pykinml_func.errors import ConfigError
from pykinml_func.types import Structures

Contents = Literal["structures", "aevs", "jacobians"]
"""How much a run needs; each includes what stands before it."""

Advance = Callable[[int], None]
"""Hears how many more structures are done."""

Featurizing = Callable[[str, int], Advance]
"""Hears what is about to be read ('structures') or computed ('aevs', 'jacobians'), and how many structures that are.

Of the structures to be read only those are counted beforehand whose files tell soon: it may be fewer, and 0.
"""


def _silent(*_: object) -> Advance:
    return lambda _: None


class PreparedSet(NamedTuple):
    """One prepared directory, opened."""

    path: Path
    structures: Structures
    aev: AEVConfig
    """with the elements filled in"""
    backend: str
    precision: str
    reused: bool
    """False where this call read the input files"""
    sources: tuple[str, ...] = ()
    """a line on each input file: what it is, what it gave, its units"""
    marks: dict[str, int] | None = None
    """of each structure's id by split files: 2 trains or validates, -1 tests, 0 neither; None without split files"""
    data: DataConfig = DataConfig()
    """with all that a pre-saved set decides filled in"""

    @property
    def aevs(self) -> np.ndarray:
        """(A,D), memory-mapped. Raises DataError where it is not what `complete` wrote."""
        return open_computed(self.path / "aevs.npy")

    @property
    def jacobians(self) -> np.ndarray:
        """(P,3,B), memory-mapped; see `featurize.jacobian_shape`. Raises DataError where it is not what was written."""
        return open_computed(self.path / "jacobians.npy")


def open_prepared(data: DataConfig, aev: AEVConfig, precision: str, featurizing: Featurizing = _silent) -> PreparedSet:
    """The prepared set of these settings, read from the input files if there is none yet.

    With `data.pre_saved` the set that is there, whatever its settings and precision are, as long as none was given
    that it contradicts. Raises ConfigError or DataError.
    """
    _check_directory(data.prepared)
    if data.pre_saved:
        return _open_pre_saved(data, aev)
    check_backend(aev, data.aev_backend)
    marks = _read_marks(data)
    formats = {path: input_format(path, data.input_type) for path in find_inputs(data.input)}
    made_by = {
        "format": FORMAT,
        "inputs": {source_label(path): [form, *_digests(path)] for path, form in formats.items()},
        "levels": list(data.levels),
        "names": sorted(data.names),
        "temperature": data.temperature,
        "marks": marks,
        "aev": aev.model_dump(mode="json"),
        "backend": data.aev_backend if data.aev_backend == "native" else f"aevmod {version('aevmod')}",
        "precision": precision,
    }
    path = _path(data.prepared, made_by, aev)
    reused = (path / MANIFEST).exists()
    if not reused:
        query = Query(data.levels, data.names, data.temperature, marks)
        reading = Reading(formats, query, data.workers, lambda number: featurizing("structures", number))
        reused = make_set(path, made_by, aev, reading)
    return _open_set(path, read_manifest(path), data, reused)


def _check_directory(directory: Path) -> None:
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"prepared must be a directory, got {directory}, and {there} is a file; name another one")


def _path(directory: Path, made_by: dict[str, Any], aev: AEVConfig) -> Path:
    """Where the set is or goes; to give the elements that the data have is to give none."""
    if aev.elements:
        own = directory / _key(made_by | {"aev": made_by["aev"] | {"elements": []}})
        if (own / MANIFEST).exists() and read_manifest(own).aev.elements == aev.elements:
            return own
    return directory / _key(made_by)


def _key(made_by: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]


def _open_pre_saved(data: DataConfig, aev: AEVConfig) -> PreparedSet:
    path = find_set(data.prepared)
    manifest = read_manifest(path)
    prepared = _open_set(path, manifest, data_config_of_set(data, aev, manifest, path), reused=True)
    marks = _read_marks(data)
    if marks is None:
        return prepared
    ids = prepared.structures.ids.tolist()
    absent = sorted(set(marks) - set(ids))
    if absent:
        raise ConfigError(
            f"split files must list structures of the prepared set, got {some(absent)} ({len(absent)} of "
            f"{len(marks)}), and {path} has {some(ids)} ({len(ids)} in all); drop those lines, or prepare such a set"
        )
    return prepared._replace(marks={name: marks.get(name, 0) for name in ids})


def _read_marks(data: DataConfig) -> dict[str, int] | None:
    return read_split_files([Path(name) for name in data.split_files]) if data.split_files else None


def _open_set(path: Path, manifest: Manifest, data: DataConfig, reused: bool) -> PreparedSet:
    missing = set(Structures._fields) - set(manifest.checksums)
    if missing:
        raise corrupted(path / MANIFEST)
    arrays = {name: open_array(path / f"{name}.npy", manifest.checksums[name]) for name in Structures._fields}
    structures = Structures(**{name: array.view(np.ndarray) for name, array in arrays.items()})
    made_by = manifest.made_by
    found = (manifest.aev, manifest.backend, str(made_by["precision"]))
    return PreparedSet(path, structures, *found, reused, manifest.sources, made_by["marks"], data)


def discard(prepared: PreparedSet) -> None:
    """Remove a set that was made for a run that is refused, if it was not there before."""
    if not prepared.reused:
        shutil.rmtree(prepared.path, ignore_errors=True)
        remove_if_empty(prepared.path.parent)


def complete(prepared: PreparedSet, contents: Contents, featurizing: Featurizing = _silent) -> None:
    """Compute and write what `contents` needs and the set lacks. Raises DataError where the disk is too small."""
    needed = {"structures": (), "aevs": ("aevs",), "jacobians": ("aevs", "jacobians")}[contents]
    for name in needed:
        features = Features(name, prepared.aev, prepared.structures, prepared.backend, prepared.precision)
        compute(prepared.path, features, partial(featurizing, name, prepared.structures.n_structures))


def _digests(path: Path) -> list[str]:
    """Hashes of a file, and of what is not yet folded into it where it is a database (write-ahead log, journal)."""
    digests = []
    for part in (path, Path(f"{path}-wal"), Path(f"{path}-journal")):
        if part.exists():
            with part.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests

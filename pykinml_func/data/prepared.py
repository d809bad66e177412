"""The prepared set: structures, AEVs and Jacobians on disk, memory-mapped, made once for the same data and settings.

A set is a directory named by a hash of what made it: the input files' bytes, the levels and filters, the AEV settings,
the backend and the precision. Each file is one `.npy` array; AEVs and Jacobians are added when a run first needs them.
The directory alone is all that training needs (`pre_saved`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal, NamedTuple

import numpy as np

from pykinml_func.config.aev import AEVConfig
from pykinml_func.config.data import DataConfig
from pykinml_func.data.elements import ordered_elements, species_of
from pykinml_func.data.featurize import fill_aevs, fill_jacobians, jacobian_offsets
from pykinml_func.data.manifest import (
    FORMAT,
    MANIFEST,
    Manifest,
    corrupted,
    filled_in,
    find_set,
    read_manifest,
    write_manifest,
)
from pykinml_func.data.rows import some, source_label
from pykinml_func.data.sources import find_inputs, input_elements, input_format, read_inputs
from pykinml_func.data.splits import read_split_files
from pykinml_func.errors import ConfigError, DataError
from pykinml_func.files import write_atomically
from pykinml_func.types import Structures

Contents = Literal["structures", "aevs", "jacobians"]
"""How much a run needs; each includes what stands before it."""

Advance = Callable[[int], None]
"""Hears how many more structures are done."""

Featurizing = Callable[[str, int], Advance]
"""Hears what ('aevs', 'jacobians') is about to be computed, and for how many structures."""

_CHECKSUM = ".crc32"
_CHUNK = 2**24


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
        return _open_computed(self.path / "aevs.npy")

    @property
    def jacobians(self) -> np.ndarray:
        """Flat, memory-mapped; see `featurize.jacobian_offsets`. Raises DataError where it is not what was written."""
        return _open_computed(self.path / "jacobians.npy")


def open_prepared(data: DataConfig, aev: AEVConfig, precision: str) -> PreparedSet:
    """The prepared set of these settings, read from the input files if there is none yet.

    With `data.pre_saved` the set that is there, whatever its settings and precision are, as long as none was given
    that it contradicts. Raises ConfigError or DataError.
    """
    if data.pre_saved:
        return _open_pre_saved(data, aev)
    paths = find_inputs(data.input)
    formats = {path: input_format(path, data.input_type) for path in paths}
    if not aev.elements:
        symbols = (symbol for path in paths for symbol in input_elements(path, formats[path]))
        aev = aev.model_copy(update={"elements": ordered_elements(symbols)})
    marks = _read_marks(data)
    made_by = {
        "format": FORMAT,
        "inputs": {source_label(path): [formats[path], _digest(path)] for path in paths},
        "levels": list(data.levels),
        "names": sorted(data.names),
        "temperature": data.temperature,
        "marks": marks,
        "aev": aev.model_dump(mode="json"),
        "backend": data.aev_backend if data.aev_backend == "native" else f"aevmod {version('aevmod')}",
        "precision": precision,
    }
    key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()
    path = data.prepared / key[:16]
    reused = (path / MANIFEST).exists()
    if not reused:
        ids = None if marks is None else list(marks)
        structures, sources = read_inputs(
            paths, data.levels, data.names, data.temperature, ids, input_type=data.input_type
        )
        _create(path, made_by, structures, sources, aev.elements)
    return _open_set(path, read_manifest(path), data, reused)


def _open_pre_saved(data: DataConfig, aev: AEVConfig) -> PreparedSet:
    path = find_set(data.prepared)
    manifest = read_manifest(path)
    prepared = _open_set(path, manifest, filled_in(data, aev, manifest, path), reused=True)
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
    arrays = {name: _open(path / f"{name}.npy", manifest.checksums[name]) for name in Structures._fields}
    structures = Structures(**{name: np.array(array) for name, array in arrays.items()})
    made_by = manifest.made_by
    found = (manifest.aev, manifest.backend, str(made_by["precision"]))
    return PreparedSet(path, structures, *found, reused, manifest.sources, made_by["marks"], data)


def complete(prepared: PreparedSet, contents: Contents, featurizing: Featurizing = lambda *_: lambda _: None) -> None:
    """Compute and write what `contents` needs and the set lacks. Raises DataError where the disk is too small."""
    atoms, length = len(prepared.structures.numbers), prepared.aev.length
    entries = int(jacobian_offsets(prepared.structures.sizes, length)[-1])
    if contents != "structures":
        _compute(prepared, "aevs", fill_aevs, (atoms, length), featurizing)
    if contents == "jacobians":
        _compute(prepared, "jacobians", fill_jacobians, (entries,), featurizing)


def _compute(
    prepared: PreparedSet, name: str, fill: Callable[..., None], shape: tuple[int, ...], featurizing: Featurizing
) -> None:
    target = prepared.path / f"{name}.npy"
    if target.exists():
        return
    needed, free = np.dtype(prepared.precision).itemsize * int(np.prod(shape)), shutil.disk_usage(prepared.path).free
    if needed > free:
        raise DataError(
            f"{target} needs {needed / 2**30:.1f} GiB and the disk has {free / 2**30:.1f} GiB free; choose another "
            "directory with --prepared, or take --force-path positions, which stores no Jacobians"
        )
    advance = featurizing(name, prepared.structures.n_structures)

    def write(temporary: Path) -> None:
        out = np.lib.format.open_memmap(temporary, mode="w+", dtype=prepared.precision, shape=shape)
        fill(prepared.aev, prepared.structures, prepared.backend, out, advance)
        out.flush()
        checksum = str(_checksum(out))
        write_atomically(target.with_suffix(_CHECKSUM), lambda beside: beside.write_text(checksum))

    write_atomically(target, write)


def _create(
    path: Path, made_by: dict[str, Any], structures: Structures, sources: tuple[str, ...], elements: tuple[str, ...]
) -> None:
    """Write the directory under a temporary name, then rename it; another process that was first wins."""
    species_of(elements, structures)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for name, array in structures._asdict().items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        checksums = {name: _checksum(array) for name, array in structures._asdict().items()}
        write_manifest(temporary, Manifest(made_by, checksums, sources))
        temporary.chmod(0o755)
        if path.exists() and not (path / MANIFEST).exists():
            shutil.rmtree(path)
        try:
            temporary.rename(path)
        except OSError:
            if not (path / MANIFEST).exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open_computed(path: Path) -> np.ndarray:
    """AEVs or Jacobians, checked against the checksum beside them. Raises DataError."""
    try:
        checksum = int(path.with_suffix(_CHECKSUM).read_text())
    except (FileNotFoundError, ValueError):
        raise corrupted(path) from None
    return _open(path, checksum)


def _open(path: Path, checksum: int) -> np.ndarray:
    """The array at `path`, memory-mapped. Raises DataError where it is not what was written there."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        raise corrupted(path) from None
    if _checksum(array) != checksum:
        raise corrupted(path)
    return array


def _checksum(array: np.ndarray) -> int:
    """CRC-32 of shape, number format and contents."""
    checksum = zlib.crc32(f"{array.shape} {array.dtype}".encode())
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for start in range(0, len(flat), _CHUNK):
        checksum = zlib.crc32(flat[start : start + _CHUNK].data, checksum)
    return checksum


def _digest(path: Path) -> str:
    """Hash of a file's bytes, those of a database not yet folded into it (write-ahead log, journal) included."""
    digest = hashlib.sha256()
    for part in (path, Path(f"{path}-wal"), Path(f"{path}-journal")):
        if part.exists():
            digest.update(part.read_bytes())
    return digest.hexdigest()

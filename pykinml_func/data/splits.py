"""Training, validation and test sets: slices of one permutation, of structures or of whole groups, so that they cannot
overlap.

# M structures
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pykinml_func.data.groups import check_groups, part_of_each
from pykinml_func.errors import ConfigError, DataError
from pykinml_func.files import write_atomically

_LEARN, _TEST = 2, -1

_LINES = 10_000
"""Lines that are in memory at a time."""


class Split(NamedTuple):
    """Indices of structures, in batch order."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def read_split_files(paths: Sequence[Path]) -> dict[str, int]:
    """Structure id -> 2 (training or validation) or -1 (test), from PyKinML's tvt files.

    A line is `DATABASE/xyz_id 2|-1`, and may go on (PyKinML writes the energy there). Raises DataError.
    """
    marks: dict[str, int] = {}
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"split file {path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise DataError(
                f"split file {path} must be text, lines of `DATABASE/xyz_id 2|-1`, got a binary file; give the file "
                "that lists the structures"
            ) from None
        for number, line in enumerate(lines, start=1):
            columns = line.split()
            if not columns:
                continue
            database, _, row = columns[0].rpartition("/")
            if not (database and row.isdecimal()) or len(columns) < 2 or columns[1] not in {str(_LEARN), str(_TEST)}:
                raise DataError(
                    f"{path}, line {number} must be `DATABASE/xyz_id 2` or `DATABASE/xyz_id -1`, got {line!r}"
                )
            name = f"{database}/{int(row)}"  # C2H2/01 is C2H2/1
            if name in marks:
                raise DataError(f"{path}, line {number}: {name} is listed twice; keep one line a structure")
            marks[name] = int(columns[1])
    if not marks:
        raise DataError(f"split files must list structures, got none in {', '.join(map(str, paths))}")
    return marks


def make_split(split: Sequence[float], strata: np.ndarray, seed: int, groups: np.ndarray | None = None) -> Split:
    """A random split of all structures by counts or fractions (`DataConfig.split`). Raises ConfigError.

    strata: (M,) kinds of structures, of each of which every part gets its share; groups: (M,) text, which structures
    of one part have in common with none of another: counts and shares are then met as nearly as whole groups allow.
    """
    counts = _counts(split, len(strata))
    if groups is not None:
        check_groups(groups)
    return _drawn(np.arange(len(strata)), strata, groups, counts, np.random.default_rng(seed))


def make_split_from_marks(
    split: Sequence[float],
    marks: Sequence[int] | np.ndarray,
    strata: np.ndarray,
    seed: int,
    groups: np.ndarray | None = None,
) -> Split:
    """Train and validate on `split`'s counts of the structures marked 2, test on those marked -1 (all, if its count
    is 0). marks: (M,); strata, groups: as in `make_split`.
    """
    if not all(float(v).is_integer() for v in split):
        raise ConfigError(
            f"split must be counts, since the structures are marked by split files, got "
            f"{', '.join(f'{v:g}' for v in split)}; e.g. 2000, 48, 0"
        )
    learn, test = (np.flatnonzero(np.asarray(marks) == mark) for mark in (_LEARN, _TEST))
    n_train, n_valid, n_test = (int(v) for v in (*split, 0)[:3])
    if n_train + n_valid > len(learn) or n_test > len(test):
        raise ConfigError(
            f"split asks for {n_train} + {n_valid} training and validation structures and {n_test or 'all'} test "
            f"ones, and the split files hold {len(learn)} marked 2 and {len(test)} marked -1; ask for less"
        )
    if groups is not None:
        check_groups(groups)
        _check_marks(groups, learn, test)
    generator = np.random.default_rng(seed)
    drawn = _drawn(learn, strata, groups, (n_train, n_valid, 0), generator)
    if n_test:
        test = np.sort(_drawn(test, np.zeros_like(strata), groups, (n_test, 0, 0), generator).train)
    return drawn._replace(test=test)


def _check_marks(groups: np.ndarray, learn: np.ndarray, test: np.ndarray) -> None:
    """Raises ConfigError where split files have a group on both sides."""
    both = np.intersect1d(groups[learn], groups[test])
    if len(both):
        raise ConfigError(
            f"split_by must keep groups whole, and the split files mark some structures of {both[0]} 2 and others -1 "
            f"({len(both)} such groups); leave split_files out, so that whole groups are drawn, or leave split_by out"
        )


def _counts(split: Sequence[float], n_structures: int) -> tuple[int, int, int]:
    if sum(split) > 1 + 1e-9:
        first, second, third = (int(v) for v in (*split, 0)[:3])
        if first + second + third > n_structures:
            raise ConfigError(
                f"split asks for {first} + {second} + {third} structures, and the data hold {n_structures}; ask for "
                "less, or give fractions"
            )
        return first, second, third
    fractions = (*split, 1 - sum(split))[:3]
    ends = [round(sum(fractions[: k + 1]) * n_structures) for k in range(3)]
    return ends[0], ends[1] - ends[0], ends[2] - ends[1]


def _drawn(
    members: np.ndarray,
    strata: np.ndarray,
    groups: np.ndarray | None,
    counts: tuple[int, int, int],
    generator: np.random.Generator,
) -> Split:
    """Parts of about these counts of `members` (k,), each in random order. Raises ConfigError for too few groups."""
    if groups is None:
        return _slices(_shuffled(members, strata, counts, generator), counts)
    places = part_of_each(groups[members], strata[members], counts, generator)
    parts = [members[places == part] for part in range(len(counts))]
    return Split(*(_shuffled(part, strata, (len(part), 0, 0), generator) for part in parts))


def _shuffled(
    members: np.ndarray, strata: np.ndarray, counts: tuple[int, int, int], generator: np.random.Generator
) -> np.ndarray:
    """A permutation of `members` (k,), whose slices of `counts` hold their shares of each stratum, spread evenly."""
    permutation = generator.permutation(members)
    kinds = strata[permutation]
    if (kinds == kinds[:1]).all():
        return permutation
    left = np.array([*counts, len(members) - sum(counts)])
    place = np.empty(len(permutation))
    values, numbers = np.unique(kinds, return_counts=True)
    for kind in values[np.argsort(numbers, kind="stable")]:  # the rarest chooses first
        of_kind = np.flatnonzero(kinds == kind)
        shares = _shares(len(of_kind), left)
        left -= shares
        place[of_kind] = np.concatenate([part + (np.arange(n) + 0.5) / n for part, n in enumerate(shares) if n])
    return permutation[np.argsort(place, kind="stable")]


def _shares(number: int, left: np.ndarray) -> np.ndarray:
    """(4,) how many of a stratum's structures the parts and the rest get, in proportion to what they have left.

    A part whose due is half a structure or more gets one, at the cost of the part that has most.
    """
    due = number * left / left.sum()
    shares = np.floor(due).astype(int)
    shares[:-1] = np.maximum(shares[:-1], due[:-1] >= 0.5)
    while shares.sum() > number:
        shares[len(shares) - 1 - np.argmax(shares[::-1])] -= 1  # of equals the last
    while shares.sum() < number:
        shares[np.argmax(due - shares)] += 1
    return shares


def _slices(permutation: np.ndarray, counts: tuple[int, int, int]) -> Split:
    train, valid, test, _ = np.split(permutation, np.cumsum(counts))
    return Split(train, valid, test)


def write_split(path: Path, split: Split, ids: np.ndarray, energies: np.ndarray) -> None:
    """Write a split in PyKinML's tvt format. ids: (M,); energies: (M,) eV, the informative third column."""
    parts = ((split.train, _LEARN), (split.valid, _LEARN), (split.test, _TEST))

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            for part, mark in parts:
                for index in np.split(part, range(_LINES, len(part), _LINES)):
                    pairs = zip(ids[index].tolist(), energies[index].astype(float).tolist(), strict=True)
                    file.writelines(f"{name} {mark} {energy!r}\n" for name, energy in pairs)

    write_atomically(path, write)

"""Which structures belong together, and to which part of a split: those of one trajectory, reaction path or parent are
so much alike that a test error means little where they are split.

# k structures asked for, G groups of them, K kinds (strata)
"""

from __future__ import annotations

import re

import numpy as np

from pykinml_func.data.elements import formula_of_each
from pykinml_func.errors import ConfigError, DataError
from pykinml_func.types import Structures

_SHUFFLES = 100
"""Permutations of the groups, of which the first is taken whose parts come nearest to what is asked for."""


def structure_groups(split_by: str, structures: Structures, members: np.ndarray) -> np.ndarray:
    """(k,) text that structures of one group share. split_by: as in DataConfig; members: (k,) indices of structures.

    Raises DataError for structures without a name where names count, ConfigError where a pattern does not fit a name.
    """
    kind, _, detail = split_by.partition(":")
    if kind == "formula":
        return formula_of_each(structures)[members]
    if kind == "id":
        return _blocks(structures.ids[members], int(detail))
    names = structures.names[members]
    nameless = structures.ids[members][names == ""]
    if len(nameless):
        raise DataError(
            f"split_by {split_by} needs structures with names, and {len(nameless)} of {len(members)} have none, "
            f"{nameless[0]} first; name them, or take id:N (blocks of N numbers of a file) or formula"
        )
    if not detail:
        return names
    known, which = np.unique(names, return_inverse=True)
    return np.array([_parent(detail, str(name)) for name in known])[which]


def _parent(pattern: str, name: str) -> str:
    """What the parentheses of a pattern hold that took part, or all that it finds. Raises ConfigError."""
    found = re.search(pattern, name)
    held = [] if found is None else [part for part in found.groups() if part is not None] or [found[0]]
    if not any(held):
        raise ConfigError(
            f"split_by name:REGEX must find something in every name, and {pattern!r} finds nothing in {name!r}; "
            "another way may follow a bar, e.g. ^(irc_[0-9]+)|^(.*)$"
        )
    return "/".join(held)


def _blocks(ids: np.ndarray, length: int) -> np.ndarray:
    """Files and numbers of their blocks: of 'C5H5/12' in blocks of 10 'C5H5/11-20'."""
    blocks = []
    for name in ids.tolist():
        source, _, number = name.rpartition("/")
        first = (int(number) - 1) // length * length
        blocks.append(f"{source}/{first + 1}-{first + length}")
    return np.array(blocks)


def check_groups(groups: np.ndarray) -> None:
    """Raises ConfigError where every group is of one structure. groups: (k,) text."""
    if len(groups) > 1 and len(np.unique(groups)) == len(groups):
        raise ConfigError(
            f"split_by must give groups of several structures, got one for each of {len(groups)} ({groups[0]} first), "
            "which is a random split; say what their names have in common, e.g. name:^(irc_[0-9]+), or leave split_by "
            "out"
        )


def part_of_each(
    groups: np.ndarray, strata: np.ndarray, counts: tuple[int, int, int], generator: np.random.Generator
) -> np.ndarray:
    """(k,) the part of each structure, 0 to 2, or 3 for the rest: those of a group have the same.

    groups: (k,) text; strata: (k,) kinds of structures, of which every part gets its share; counts: structures that
    the parts are asked to have, of which they get about as many. Of some permutations of the groups, each cut at the
    counts, the one is taken that comes nearest. Raises ConfigError for fewer groups than parts.
    """
    known, group_of = np.unique(groups, return_inverse=True)
    n_parts = sum(count > 0 for count in counts)
    if len(known) < n_parts:
        raise ConfigError(
            f"split_by must give a group or more for each part of the split, {n_parts} in all, got {len(known)} of "
            f"{len(groups)} structures ({', '.join(known)}); make smaller groups, e.g. id:50 (blocks of 50 numbers), "
            "or leave split_by out"
        )
    kinds = np.unique(strata, return_inverse=True)[1]
    sizes = np.zeros((len(known), kinds.max(initial=0) + 1), dtype=int)
    np.add.at(sizes, (group_of, kinds), 1)
    shuffles = (_cut(generator.permutation(len(known)), sizes.sum(axis=1), counts) for _ in range(_SHUFFLES))
    best: np.ndarray = min(shuffles, key=lambda places: _distance(places, sizes, counts))
    return best[group_of]


def _cut(permutation: np.ndarray, sizes: np.ndarray, counts: tuple[int, int, int]) -> np.ndarray:
    """(G,) the part of each group, where a permutation of them is cut nearest to the counts; every part that is asked
    for has one. sizes: (G,) structures of each.
    """
    ends = np.concatenate([[0], np.cumsum(sizes[permutation])])
    cuts = [0]
    for k, count in enumerate(counts):
        nearest = int(np.abs(ends - sum(counts[: k + 1])).argmin()) if count else 0
        last = len(sizes) - sum(later > 0 for later in counts[k + 1 :])
        cuts.append(min(max(nearest, cuts[-1] + (count > 0)), last))
    places = np.empty(len(sizes), dtype=int)
    places[permutation] = np.searchsorted(cuts[1:], np.arange(len(sizes)), side="right")
    return places


def _distance(places: np.ndarray, sizes: np.ndarray, counts: tuple[int, int, int]) -> tuple[int, float]:
    """How many parts lack a kind that they are due, and how many structures are due elsewhere.

    Half a group more or less is no matter: else few groups would be divided in the same one or two ways by every seed.
    places: (G,) the part of each group; sizes: (G,K) structures of each and kind.
    """
    left = np.array([*counts, sizes.sum() - sum(counts)])
    due = np.outer(left / left.sum(), sizes.sum(axis=0))
    got = np.zeros_like(due)
    np.add.at(got, places, sizes)
    lacking = ((got == 0) & (due >= 0.5))[:-1]
    return int(lacking.sum()), float(np.maximum(np.abs(got - due) - sizes.mean(axis=0) / 2, 0).sum())

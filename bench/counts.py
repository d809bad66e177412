"""How much arithmetic, and how much memory traffic, the work of a model cannot do without.

Counted by formula, from a config and the geometry. A multiply-add is two flops; exponentials are counted apart, since
each is worth some twenty flops. With W the weights of one element's network and W1 those of its first layer, an atom
takes

    energies                      2 W                     forward
    energies and forces           4 W                     forward, and back to the AEV
    training to energies          6 W - 2 W1              forward; gradients of the weights; back to the first layer
    training to forces too       12 W - 2 W1              forward, and back to the AEV; through both again for the
                                                          gradients of the weights (4 W) and of what they act on

flops in matrix products, and an exponential for each Gaussian neuron. With R radial shells, A angular shells, Q angular
sections and z multiplications for the power zeta, the AEVs of the compiled kernel take

                        of an ordered pair of neighbours     of an angle (two close neighbours of an atom)
    AEVs                5 R + 70                             2 A Q + 4 A + (4 + z) Q + 25
    pull (forces)       10 R + 70                            4 A Q + 5 A + (13 + z) Q + 75
    push (training)     10 R + 75                            4 A Q + 7 A + (8 + z) Q + 65

flops and R and A exponentials; 70 is for the two cutoff functions, the length and the unit vector; 25 is for the angle,
what is above it for the derivatives of angle and lengths. An ordered pair is a neighbour within the radial cutoff, an
angle has both neighbours within the angular one. Jacobians contract in 6 B flops an ordered pair of atoms near or not,
with B the terms that are stored of it.

Memory: what is larger than the caches and must be read at least once, that is AEVs and Jacobians where they are cached,
or positions, and the labels. Parameters and intermediate values are taken to stay in a cache.

# D AEV length, n atoms of one structure
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, NamedTuple, Self

import numpy as np

from pykinml_func import AEVConfig, ModelConfig
from pykinml_func.data.geometry import squared_distances

Task = Literal["energies", "energies_and_forces", "train_energies", "train_forces"]


class Near(NamedTuple):
    """What the work of AEVs is made of, in all of some structures."""

    atoms: int
    pairs: int
    """ordered pairs of atoms within the radial cutoff"""
    angles: int
    """unordered pairs of atoms within the angular cutoff of a third"""
    all_pairs: int
    """ordered pairs of atoms of the same structure"""


class Work(NamedTuple):
    """What is to be done."""

    flops: float = 0.0
    exponentials: float = 0.0
    n_bytes: float = 0.0

    def plus(self, other: Self) -> Work:
        """Both."""
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


def near_counts(config: AEVConfig, structures: Iterable[np.ndarray]) -> Near:
    """Counts in structures of positions (n,3) Å."""
    total = np.zeros(4, dtype=np.int64)
    for positions in structures:
        squared, n = squared_distances(positions), len(positions)
        close = (squared <= config.angular_cutoff**2).sum(axis=1)
        pairs = (squared <= config.radial_cutoff**2).sum()
        total += np.array([n, pairs, (close * (close - 1) // 2).sum(), n * (n - 1)])
    return Near(*total.tolist())


def network_work(config: ModelConfig, atoms: int, task: Task) -> Work:
    """Matrix products and activations of the networks of one level on so many atoms."""
    layers = list(pairwise((config.aev.length, *config.neurons)))
    weights, first = sum(a * b for a, b in layers), math.prod(layers[0])
    flops = {
        "energies": 2 * weights,
        "energies_and_forces": 4 * weights,
        "train_energies": 6 * weights - 2 * first,
        "train_forces": 12 * weights - 2 * first,
    }[task]
    gaussians = sum(n for n, kind in zip(config.neurons, config.activations, strict=True) if kind == "gaussian")
    return Work(atoms * flops, atoms * gaussians)


def aev_work(config: AEVConfig, near: Near, operation: Literal["aevs", "pull", "push"]) -> Work:
    """One operation of the compiled kernel on all of `near`."""
    r, a, q = config.n_radial, config.n_angular_radial, config.n_angular
    z = multiplications(config.zeta)
    pair, angle = {
        "aevs": (5 * r + 70, 2 * a * q + 4 * a + (4 + z) * q + 25),
        "pull": (10 * r + 70, 4 * a * q + 5 * a + (13 + z) * q + 75),
        "push": (10 * r + 75, 4 * a * q + 7 * a + (8 + z) * q + 65),
    }[operation]
    return Work(near.pairs * pair + near.angles * angle, near.pairs * r + near.angles * a)


def multiplications(exponent: float) -> int:
    """Of a whole power by squaring; of another about as many as a logarithm and an exponential take."""
    if not float(exponent).is_integer():
        return 40
    return int(exponent).bit_length() - 1 + int(exponent).bit_count() - 1


def task_work(
    config: ModelConfig, near: Near, task: Task, features: Literal["aevs", "jacobian", "positions"], itemsize: int
) -> Work:
    """All the work of a task on structures, from what is cached of them; itemsize: bytes of a number."""
    aev, work = config.aev, network_work(config, near.atoms, task)
    labels = near.atoms * 3 * itemsize if task == "train_forces" else 0
    if features == "positions":
        operations: list[Literal["aevs", "pull", "push"]] = ["aevs"]
        operations += [] if task == "energies" else ["pull"]
        operations += ["push"] if task == "train_forces" else []
        for operation in operations:
            work = work.plus(aev_work(aev, near, operation))
        return work.plus(Work(n_bytes=near.atoms * 3 * itemsize + labels))
    work = work.plus(Work(n_bytes=near.atoms * aev.length * itemsize + labels))
    if features == "aevs":
        return work
    terms = aev.n_radial + len(aev.elements) * aev.n_angular_radial * aev.n_angular
    times = 2 if task == "train_forces" else 1  # contracted again with the changes that forces ask for
    numbers = 3 * terms * near.all_pairs
    return work.plus(Work(flops=times * 2 * numbers, n_bytes=numbers * itemsize))

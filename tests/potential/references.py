"""What AEVs are compared with: the equations in 50 digits, and aevmod."""

from __future__ import annotations

from itertools import combinations

import aevmod
import mpmath
import numpy as np

from pykinml_func.config import AEVConfig


def reference_aev(
    config: AEVConfig, species: list[int], positions: list[mpmath.matrix], centre: int
) -> list[mpmath.mpf]:
    """Equations 2 to 4 of Smith et al. 2017 as printed, in mpmath's precision, with aevmod's two changes."""
    mp = mpmath.mp
    vectors = {atom: positions[atom] - positions[centre] for atom in range(len(species)) if atom != centre}
    distance = {atom: mp.norm(vector) for atom, vector in vectors.items()}

    def cutoff(r: mpmath.mpf, limit: float) -> mpmath.mpf:
        return (mp.cos(mp.pi * r / limit) + 1) / 2 if r <= limit else mp.mpf(0)

    aev = []
    for element in range(len(config.elements)):
        near = [r for atom, r in distance.items() if species[atom] == element]
        for shift in config.radial_shifts:
            terms = [mp.exp(-config.radial_eta * (r - shift) ** 2) * cutoff(r, config.radial_cutoff) for r in near]
            aev.append(config.radial_prefactor * mp.fsum(terms))
    for kind in ((a, b) for a in range(len(config.elements)) for b in range(a, len(config.elements))):
        total = mp.zeros(config.n_angular_radial, config.n_angular)
        for j, k in combinations(vectors, 2):
            if tuple(sorted((species[j], species[k]))) != kind:
                continue
            theta = mp.acos(config.beta * (vectors[j].T * vectors[k])[0] / (distance[j] * distance[k]))
            cutoffs = cutoff(distance[j], config.angular_cutoff) * cutoff(distance[k], config.angular_cutoff)
            mean = (distance[j] + distance[k]) / 2
            shells = [cutoffs * mp.exp(-config.angular_eta * (mean - shift) ** 2) for shift in config.angular_shifts]
            sections = [((1 + mp.cos(theta - section)) / 2) ** config.zeta for section in config.angular_sections]
            total += mpmath.matrix(shells) * mpmath.matrix(sections).T
        aev += [config.angular_prefactor * value for value in total]
    return aev


def reference_values(config: AEVConfig, species: list[int], positions: np.ndarray) -> np.ndarray:
    """(n,D)"""
    with mpmath.workdps(50):
        points = [mpmath.matrix(row) for row in positions.tolist()]
        return np.array([reference_aev(config, species, points, atom) for atom in range(len(species))], dtype=float)


def reference_jacobian(config: AEVConfig, species: list[int], positions: np.ndarray, centre: int) -> np.ndarray:
    """(D,n,3) of one centre: central differences with a step of 1e-20 Å, exact to some 25 digits."""
    with mpmath.workdps(60):
        step, points = mpmath.mpf(10) ** -20, [mpmath.matrix(row) for row in positions.tolist()]

        def moved(atom: int, axis: int, by: mpmath.mpf) -> mpmath.matrix:
            changed = [point.copy() for point in points]
            changed[atom][axis] += by
            return mpmath.matrix(reference_aev(config, species, changed, centre))

        columns = [
            (moved(atom, axis, step) - moved(atom, axis, -step)) / (2 * step)
            for atom in range(len(species))
            for axis in range(3)
        ]
        return np.array([list(column) for column in columns], dtype=float).T.reshape(-1, len(species), 3)


def by_aevmod(method: str, config: AEVConfig, species: list[int], positions: np.ndarray) -> np.ndarray:
    """positions: (G,n,3). Returns (G,n,D), or (G,n,D,n,3) for a Jacobian."""
    shells, cutoffs = (
        (config.n_radial, config.n_angular_radial, config.n_angular),
        (config.radial_cutoff, config.angular_cutoff),
    )
    calculator = aevmod.aev(list(config.elements), *shells, list(cutoffs), beta=config.beta)
    geometries = aevmod.config([config.elements[index] for index in species])
    calculator.build_index_sets(geometries)
    geometries.add_structures(positions.reshape(len(positions), -1).tolist())
    values = np.array(getattr(calculator, method)(geometries))
    return values if method == "eval" else values.reshape(*values.shape[:3], -1, 3)

"""AEVs and their Jacobians of many structures, by the native torch code or by aevmod.

# A atoms in all structures, D AEV length, G structures of one composition, n atoms of one structure
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.func import vmap

from pykinml_func.config import AEVConfig
from pykinml_func.data.elements import species_of
from pykinml_func.errors import ConfigError
from pykinml_func.potential.aev import aevs
from pykinml_func.potential.aev_jacobians import aev_jacobians
from pykinml_func.threads import using_threads
from pykinml_func.types import Structures, atom_rows

_CHUNK_BYTES = 16 * 2**20


def jacobian_offsets(sizes: np.ndarray, length: int) -> np.ndarray:
    """(M+1,): structure m's Jacobian (n, D, 3n) is flat[offsets[m]:offsets[m+1]]. sizes: (M,); length: D."""
    return np.concatenate([[0], np.cumsum(3 * length * sizes.astype(np.int64) ** 2)])


def check_backend(config: AEVConfig, backend: str) -> None:
    """Raises ConfigError where the backend cannot compute these AEVs."""
    if backend == "aevmod" and config.own_grids:
        raise ConfigError(
            f"aevmod computes only the grids of its own rule, got others ({', '.join(sorted(config.own_grids))}); "
            "leave them out, or take aev_backend native"
        )


@using_threads(1)  # of many small operations several threads would make more work than they share
def fill_aevs(
    config: AEVConfig, structures: Structures, backend: str, out: np.ndarray, advance: Callable[[int], None]
) -> None:
    """Write the AEVs of every atom to `out` (A,D), in its precision; `advance` hears how many structures are done."""
    evaluate = _aevmod_aevs if backend == "aevmod" else _native_aevs
    for index, species, positions in _chunks(config, structures, _bytes_of_aevs):
        out[atom_rows(structures.offsets, index)] = evaluate(config, species, positions).reshape(-1, config.length)
        advance(len(index))


@using_threads(1)  # of many small operations several threads would make more work than they share
def fill_jacobians(
    config: AEVConfig, structures: Structures, backend: str, out: np.ndarray, advance: Callable[[int], None]
) -> None:
    """Write every structure's dAEV/dxyz to the flat `out` (see `jacobian_offsets`), in 1/Å."""
    evaluate = _aevmod_jacobians if backend == "aevmod" else _native_jacobians
    offsets = jacobian_offsets(structures.sizes, config.length)
    for index, species, positions in _chunks(config, structures, _bytes_of_jacobians):
        for m, jacobian in zip(index, evaluate(config, species, positions), strict=True):
            out[offsets[m] : offsets[m + 1]] = jacobian.reshape(-1)
        advance(len(index))


def _chunks(
    config: AEVConfig, structures: Structures, size_in_bytes: Callable[[int, int], int]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Structures that share their species (n,): indices (G,), the species, positions (G,n,3)."""
    species = species_of(config.elements, structures)
    groups: dict[bytes, list[int]] = {}
    for m, (start, end) in enumerate(zip(structures.offsets[:-1], structures.offsets[1:], strict=True)):
        groups.setdefault(species[start:end].tobytes(), []).append(m)
    for members in groups.values():
        first = members[0]
        shared = species[structures.offsets[first] : structures.offsets[first + 1]]
        step = max(1, _CHUNK_BYTES // size_in_bytes(len(shared), config.length))
        for start in range(0, len(members), step):
            index = np.array(members[start : start + step])
            positions = structures.positions[atom_rows(structures.offsets, index)]
            yield index, shared, positions.reshape(len(index), len(shared), 3)


def _bytes_of_aevs(n_atoms: int, length: int) -> int:
    """Working memory of one structure: its pairs of neighbours times the widest term."""
    return 8 * n_atoms * (n_atoms**2 // 2 + 1) * 32 + 8 * n_atoms * length


def _bytes_of_jacobians(n_atoms: int, length: int) -> int:
    """Working memory of one structure: its Jacobian, and a centre's, a neighbour's and a third atom's slopes."""
    return 8 * n_atoms**2 * (3 * length + 32 * n_atoms)


def _native_aevs(config: AEVConfig, species: np.ndarray, positions: np.ndarray) -> np.ndarray:
    indices = torch.from_numpy(species)
    return vmap(lambda x: aevs(config, indices, x))(torch.from_numpy(positions)).numpy()


def _native_jacobians(config: AEVConfig, species: np.ndarray, positions: np.ndarray) -> np.ndarray:
    indices = torch.from_numpy(species)
    return vmap(lambda x: aev_jacobians(config, indices, x))(torch.from_numpy(positions)).numpy()


def _aevmod_aevs(config: AEVConfig, species: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return _aevmod("eval", config, species, positions)


def _aevmod_jacobians(config: AEVConfig, species: np.ndarray, positions: np.ndarray) -> np.ndarray:
    # eval_Jac_sac, not eval_Jac: aevmod 1.1.0's eval_Jac scales both angular terms by beta, so that it is no gradient
    return _aevmod("eval_Jac_sac", config, species, positions)


def _aevmod(method: str, config: AEVConfig, species: np.ndarray, positions: np.ndarray) -> np.ndarray:
    import aevmod

    cutoffs = [config.radial_cutoff, config.angular_cutoff]
    shells = (config.n_radial, config.n_angular_radial, config.n_angular)
    calculator = aevmod.aev(list(config.elements), *shells, cutoffs, beta=config.beta)
    structures = aevmod.config([config.elements[index] for index in species])
    calculator.build_index_sets(structures)
    structures.add_structures(positions.reshape(len(positions), -1).tolist())
    return np.array(getattr(calculator, method)(structures))

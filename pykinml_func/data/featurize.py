"""AEVs and their Jacobians of many structures: compiled, in torch where that was not built, or by aevmod.

# A atoms in all structures, D AEV length, G structures of one composition, n atoms of one structure
# P ordered pairs of atoms of one structure, B terms of an AEV that depend on one neighbour
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.func import vmap

from pykinml_func.config import AEVConfig
from pykinml_func.data.elements import species_of
from pykinml_func.errors import ConfigError
from pykinml_func.potential import aev_kernel
from pykinml_func.potential.aev import aev_jacobians, aevs, neighbour_columns
from pykinml_func.threads import using_threads
from pykinml_func.types import Structures, atom_rows

_CHUNK_BYTES = 16 * 2**20


def pair_offsets(sizes: np.ndarray) -> np.ndarray:
    """(M+1,): the ordered pairs of atoms of structure m are offsets[m]:offsets[m+1] of all. sizes: (M,)."""
    sizes = sizes.astype(np.int64)
    return np.concatenate([[0], np.cumsum(sizes * (sizes - 1))])


def jacobian_shape(config: AEVConfig, sizes: np.ndarray) -> tuple[int, int, int]:
    """(P,3,B) of the structures of these sizes (M,): see `aev_kernel.pair_jacobians`."""
    return int(pair_offsets(sizes)[-1]), 3, len(neighbour_columns(config)[0])


def check_backend(config: AEVConfig, backend: str) -> None:
    """Raises ConfigError where the backend cannot compute these AEVs."""
    if backend == "aevmod" and config.own_grids:
        raise ConfigError(
            f"aevmod computes only the grids of its own rule, got others ({', '.join(sorted(config.own_grids))}); "
            "leave them out, or take aev_backend native"
        )


def fill_aevs(
    config: AEVConfig, structures: Structures, backend: str, out: np.ndarray, advance: Callable[[int], None]
) -> None:
    """Write the AEVs of every atom to `out` (A,D), in its precision; `advance` hears how many structures are done."""
    if backend == "native" and aev_kernel.available():
        for start, atoms, listed in _listed(config, structures, 8 * config.length * structures.sizes):
            first = structures.offsets[start]
            out[first : first + len(listed)] = aev_kernel.aevs(config, atoms, listed).numpy()
            advance(len(atoms.offsets) - 1)
        return
    evaluate = _aevmod_aevs if backend == "aevmod" else _torch_aevs
    for index, species, positions in _chunks(config, structures, _bytes_of_aevs):
        out[atom_rows(structures.offsets, index)] = evaluate(config, species, positions).reshape(-1, config.length)
        advance(len(index))


def fill_jacobians(
    config: AEVConfig, structures: Structures, backend: str, out: np.ndarray, advance: Callable[[int], None]
) -> None:
    """Write every structure's dAEV/dxyz to `out` (P,3,B), in 1/Å: see `aev_kernel.pair_jacobians`."""
    offsets = pair_offsets(structures.sizes)
    if backend == "native" and aev_kernel.available():
        for start, atoms, listed in _listed(config, structures, 8 * np.diff(offsets) * out[:1].size):
            end = start + len(atoms.offsets) - 1
            out[offsets[start] : offsets[end]] = aev_kernel.pair_jacobians(config, atoms, listed).numpy()
            advance(end - start)
        return
    evaluate = _aevmod_jacobians if backend == "aevmod" else _torch_jacobians
    for index, species, positions in _chunks(config, structures, _bytes_of_jacobians):
        blocks = _pair_blocks(config, species, evaluate(config, species, positions))
        for m, block in zip(index, blocks, strict=True):
            out[offsets[m] : offsets[m + 1]] = block
        advance(len(index))


def _pair_blocks(config: AEVConfig, species: np.ndarray, jacobians: np.ndarray) -> np.ndarray:
    """Of dense Jacobians (G, n D 3n) in any shape, what `aev_kernel.pair_jacobians` keeps: (G,n(n-1),3,B)."""
    n = len(species)
    first, second = np.nonzero(~np.eye(n, dtype=bool))
    columns = np.array(neighbour_columns(config))[species[second]]
    dense = jacobians.reshape(-1, n, config.length, n, 3)
    return dense[:, first[:, None], columns, second[:, None]].swapaxes(2, 3)


def _listed(
    config: AEVConfig, structures: Structures, n_bytes: np.ndarray
) -> Iterator[tuple[int, aev_kernel.Atoms, torch.Tensor]]:
    """Consecutive structures, as many at a time as `_CHUNK_BYTES` allows: the first one's number, their atoms, and
    positions (a,3). n_bytes: (M,) of the result of each.
    """
    species, offsets = species_of(config.elements, structures), structures.offsets
    filled = np.cumsum(n_bytes)
    start = 0
    while start < structures.n_structures:
        before = filled[start] - n_bytes[start]
        end = max(start + 1, int(np.searchsorted(filled, before + _CHUNK_BYTES, side="right")))
        atoms = slice(offsets[start], offsets[end])
        positions = np.array(structures.positions[atoms])  # torch wants what it may write to, and a set on disk is not
        rows = torch.arange(offsets[end] - offsets[start])
        listed = aev_kernel.Atoms(
            rows, torch.from_numpy(offsets[start : end + 1] - offsets[start]), torch.from_numpy(species[atoms])
        )
        yield start, listed, torch.from_numpy(positions)
        start = end


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


@using_threads(1)  # of many small operations several threads would make more work than they share
def _torch_aevs(config: AEVConfig, species: np.ndarray, positions: np.ndarray) -> np.ndarray:
    indices = torch.from_numpy(species)
    return vmap(lambda x: aevs(config, indices, x))(torch.from_numpy(positions)).numpy()


@using_threads(1)
def _torch_jacobians(config: AEVConfig, species: np.ndarray, positions: np.ndarray) -> np.ndarray:
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

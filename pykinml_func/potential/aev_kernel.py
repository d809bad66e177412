"""The compiled AEVs of a CPU: `aev_kernel.cpp`, as pure functions of tensors that torch.func and torch.compile know.

Where the library was not built (no C++ compiler at installation), and on accelerators, `aev` does the same in torch.

# M structures, A atoms in all of them, L vectors at a time, S species, R rows of the arrays, D AEV length
# P ordered pairs of atoms of one structure, B terms that depend on one neighbour (see `aev.neighbour_columns`)
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload

from pykinml_func.config import AEVConfig

_BUILDS = {"AVX512": ("_v4", "_v3", ""), "AVX2": ("_v3", "")}
"""Suffixes of the builds that serve what torch says of the processor, best first; the plain one runs on any."""

_AEVS, _PULL, _PUSH, _JACOBIANS = range(4)

_PRECISIONS = ({torch.float32}, {torch.float64})


class Atoms(NamedTuple):
    """Structures in arrays of R rows, some of which may hold no atom."""

    rows: Tensor
    """(A,): the row of each atom, structure after structure; unused beyond offsets[M]"""
    offsets: Tensor
    """(M+1,): the atoms of structure m are rows[offsets[m]:offsets[m+1]]"""
    species: Tensor
    """(R,) indices into the elements"""


def available() -> bool:
    """Whether the library was built."""
    return _library() is not None


@cache
def _library() -> Callable[..., None] | None:
    """The entry of the fastest build for this processor."""
    for suffix in _BUILDS.get(torch.backends.cpu.get_cpu_capability(), ("",)):
        spec = find_spec(f"pykinml_func.potential._aev_kernel{suffix}")
        if spec is not None and spec.origin is not None:
            entry = ctypes.CDLL(spec.origin).pykinml_aev
            integer, pointer = ctypes.c_int64, ctypes.c_void_p
            entry.argtypes = [integer, integer, pointer, pointer, integer, pointer, pointer, pointer]
            entry.argtypes += [integer, pointer, integer, pointer, pointer, integer]
            entry.restype = None
            return entry
    return None


def _grid(config: AEVConfig) -> tuple[list[int], Tensor]:
    """The settings in the order of `Grid` in the library."""
    sizes, settings = _grid_arrays(config)
    return sizes, torch.from_numpy(settings)


@lru_cache
def _grid_arrays(config: AEVConfig) -> tuple[list[int], np.ndarray]:
    """An array, not a tensor: one made inside grad or vmap would be kept with that transform's wrapper around it."""
    sizes = [len(config.elements), config.n_radial, config.n_angular_radial, config.n_angular]
    numbers = [config.radial_cutoff, config.angular_cutoff, config.beta, config.radial_eta, config.angular_eta]
    numbers += [config.radial_prefactor, config.angular_prefactor, config.zeta]
    return sizes, np.array([*numbers, *config.radial_shifts, *config.angular_shifts, *config.angular_sections])


def aevs(config: AEVConfig, atoms: Atoms, positions: Tensor) -> Tensor:
    """AEVs of every row, 0 where a row holds no atom. positions: (R,3) Å. Returns (R,D).

    Raises NotImplementedError where they would be differentiated (see `pull`).
    """
    _check_fixed(positions)
    return torch.ops.pykinml.aevs(positions, *atoms, *_grid(config))


def pull(config: AEVConfig, atoms: Atoms, positions: Tensor, gradients: Tensor) -> Tensor:
    """gradients (L,R,D) contracted with dAEV/dxyz: differentiable in them, and batched over them by vmap.

    positions: (R,3) Å. Returns (L,R,3). Raises NotImplementedError where it would be differentiated in the positions.
    """
    _check_fixed(positions)
    return _Product.apply(gradients, positions, *atoms, *_grid(config), False)


def _check_fixed(positions: Tensor) -> None:
    if positions.requires_grad:
        raise NotImplementedError("the compiled AEVs give no derivative by positions; use pykinml_func.aevs")


def pair_jacobians(config: AEVConfig, atoms: Atoms, positions: Tensor) -> Tensor:
    """For every ordered pair of atoms of a structure, d(AEV of the first)/d(position of the second), without the terms
    that do not depend on it: those of the radial shells, then for each species of third atoms the angular ones.

    positions: (R,3) Å. Returns (P,3,B) 1/Å, the pairs of a structure in the order of `Atoms.rows`.
    """
    sizes = atoms.offsets.diff()
    n_pairs = int((sizes * (sizes - 1)).sum())
    n_terms = config.n_radial + len(config.elements) * config.n_angular_radial * config.n_angular
    out = positions.new_empty(n_pairs, 3, n_terms)
    return _call(_JACOBIANS, positions, atoms, _grid(config), None, out)


class _Product(torch.autograd.Function):
    """pull, or push in its place: linear in the vectors, so that the derivative of each is the other."""

    @staticmethod
    def forward(vectors: Tensor, *others: Any) -> Tensor:
        positions, rows, offsets, species, sizes, settings, pushes = others
        operation = torch.ops.pykinml.push_aevs if pushes else torch.ops.pykinml.pull_aevs
        return operation(positions, rows, offsets, species, vectors, sizes, settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004 (torch's signature)
        _, *tensors, sizes, settings, pushes = inputs
        ctx.save_for_backward(*tensors, settings)
        ctx.sizes, ctx.pushes = sizes, pushes

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, settings = ctx.saved_tensors
        return _Product.apply(gradient, *tensors, ctx.sizes, settings, not ctx.pushes), *(None,) * 7

    @staticmethod
    def vmap(_: Any, in_dims: tuple[int | None, ...], vectors: Tensor, *others: Any) -> tuple[Tensor, int]:
        """Vectors that vmap stacks are more of the L that one call takes."""
        if in_dims[0] is None or any(dim is not None for dim in in_dims[1:5]):
            raise NotImplementedError("the compiled AEVs are batched over gradients alone; use pykinml_func.aevs")
        members = vectors.movedim(in_dims[0], 0)
        return _Product.apply(members.flatten(0, 1), *others).unflatten(0, members.shape[:2]), 0


_LIBRARY = torch.library.Library("pykinml", "DEF")
_ARGUMENTS = "Tensor positions, Tensor rows, Tensor offsets, Tensor species"
_LIBRARY.define(f"aevs({_ARGUMENTS}, int[] sizes, Tensor settings) -> Tensor")
_LIBRARY.define(f"pull_aevs({_ARGUMENTS}, Tensor gradients, int[] sizes, Tensor settings) -> Tensor")
_LIBRARY.define(f"push_aevs({_ARGUMENTS}, Tensor velocities, int[] sizes, Tensor settings) -> Tensor")


def _length(sizes: list[int]) -> int:
    species, radial, shells, sections = sizes
    return species * radial + species * (species + 1) // 2 * shells * sections


def _empty_aevs(positions: Tensor, *others: Any) -> Tensor:
    return positions.new_empty(positions.shape[0], _length(others[-2]))


def _empty_forces(positions: Tensor, *others: Any) -> Tensor:
    return positions.new_empty(others[3].shape[0], *positions.shape)


def _empty_changes(positions: Tensor, *others: Any) -> Tensor:
    return positions.new_empty(*others[3].shape[:2], _length(others[-2]))


def _aevs(positions: Tensor, rows: Tensor, offsets: Tensor, species: Tensor, *grid: Any) -> Tensor:
    out = positions.new_zeros(positions.shape[0], _length(grid[0]))
    return _call(_AEVS, positions, Atoms(rows, offsets, species), grid, None, out)


def _pull(positions: Tensor, rows: Tensor, offsets: Tensor, species: Tensor, gradients: Tensor, *grid: Any) -> Tensor:
    out = positions.new_zeros(gradients.shape[0], *positions.shape)
    return _call(_PULL, positions, Atoms(rows, offsets, species), grid, gradients, out)


def _push(positions: Tensor, rows: Tensor, offsets: Tensor, species: Tensor, velocities: Tensor, *grid: Any) -> Tensor:
    out = positions.new_zeros(*velocities.shape[:2], _length(grid[0]))
    return _call(_PUSH, positions, Atoms(rows, offsets, species), grid, velocities, out)


def _call(
    operation: int,
    positions: Tensor,
    atoms: Atoms,
    grid: tuple[list[int], Tensor],
    vectors: Tensor | None,
    out: Tensor,
) -> Tensor:
    """Fill `out`. vectors: (L,R,D) or (L,R,3). Raises TypeError for other numbers than float32 or float64, or both."""
    entry = _library()
    if entry is None:
        raise RuntimeError("the compiled AEVs were not built; see `available`")
    kinds = {positions.dtype, positions.dtype if vectors is None else vectors.dtype}
    if kinds not in _PRECISIONS:
        raise TypeError(f"positions and vectors must be float32 or float64, and alike, got {sorted(map(str, kinds))}")
    sizes, settings = grid
    positions, vectors = positions.contiguous(), None if vectors is None else vectors.contiguous()
    entry(
        operation,
        positions.dtype == torch.float32,
        (ctypes.c_int64 * len(sizes))(*sizes),
        settings.data_ptr(),
        len(atoms.offsets) - 1,
        *(tensor.data_ptr() for tensor in atoms),
        len(positions),
        positions.data_ptr(),
        1 if vectors is None else len(vectors),
        None if vectors is None else vectors.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


CPU_FUNCTIONS: dict[OpOverload, Callable[..., Tensor]] = {}
"""What each operation comes down to, less torch's way there, which takes half as long as a small molecule's AEVs."""

for _name, _function, _empty in (
    ("aevs", _aevs, _empty_aevs),
    ("pull_aevs", _pull, _empty_forces),
    ("push_aevs", _push, _empty_changes),
):
    _LIBRARY.impl(_name, _function, "CPU")
    torch.library.register_fake(f"pykinml::{_name}", _empty, lib=_LIBRARY)
    CPU_FUNCTIONS[getattr(torch.ops.pykinml, _name).default] = _function

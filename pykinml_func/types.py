"""The nouns of the package: NamedTuples, so that they are pytrees and pass through torch.func unchanged.

# M structures, A atoms in all of them, L fidelity levels, S species, N atoms a species (padded),
# n atoms of the largest structure, D AEV length, E members of an ensemble, K directions of AEV space
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from pykinml_func.config import AEVConfig, ModelConfig


class Structures(NamedTuple):
    """Labelled geometries of mixed sizes on the host, atoms laid end to end."""

    numbers: np.ndarray
    """(A,) atomic numbers"""
    positions: np.ndarray
    """(A,3) Å"""
    offsets: np.ndarray
    """(M+1,): the atoms of structure m are offsets[m]:offsets[m+1]"""
    levels: np.ndarray
    """(L,) fidelity levels, a column of the labels each: ascending as read, in the order of a run in its labels"""
    energies: np.ndarray
    """(M,L) eV, NaN where absent"""
    forces: np.ndarray
    """(A,L,3) eV/Å, NaN where absent"""
    ids: np.ndarray
    """(M,) text such as 'C5H5/12'"""
    names: np.ndarray
    """(M,) text"""
    temperatures: np.ndarray
    """(M,) K, NaN where absent"""

    @property
    def n_structures(self) -> int:
        """M."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> np.ndarray:
        """(M,) atoms of each structure."""
        return np.diff(self.offsets)

    def take(self, index: Sequence[int] | np.ndarray) -> Structures:
        """The structures at `index` (k,), in that order."""
        index = np.asarray(index, dtype=np.int64)
        atoms = atom_rows(self.offsets, index)
        return Structures(
            self.numbers[atoms],
            self.positions[atoms],
            np.concatenate([[0], np.cumsum(self.sizes[index])]),
            self.levels,
            self.energies[index],
            self.forces[atoms],
            self.ids[index],
            self.names[index],
            self.temperatures[index],
        )


def atom_rows(offsets: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Row numbers of the atoms of the structures at `index` (k,), laid end to end. offsets: (M+1,)."""
    sizes = offsets[index + 1] - offsets[index]
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(offsets[index] - (ends - sizes), sizes)


class Networks(NamedTuple):
    """The element networks, stacked on a leading species axis; one entry a layer."""

    weights: tuple[Tensor, ...]
    """(S, out, in) each"""
    biases: tuple[Tensor, ...]
    """(S, out) each; an empty tuple for networks without biases"""


class Params(NamedTuple):
    """All that a potential has learned; of an ensemble, every tensor has a leading axis of members."""

    networks: tuple[Networks, ...]
    """one a fidelity level, lowest first"""
    self_energies: Tensor
    """(L,S) eV, float64 whatever the precision of the networks"""


class Calibration(NamedTuple):
    """What the spread of an ensemble's members meant on structures that none of them was trained on."""

    energy_scale: Tensor
    """(L,) typical error of the mean energy over the members' standard deviation; NaN where not known, as all else"""
    force_scale: Tensor
    """(L,) the same of force components"""
    spread_limit: Tensor
    """() eV: largest calibrated standard deviation of the energy over the root of the number of atoms, at the highest
    level
    """


class Domain(NamedTuple):
    """Where in AEV space a model was trained, in float32: one ellipsoid an element."""

    mean: Tensor
    """(S,D)"""
    whitener: Tensor
    """(S,D,K): an AEV less the mean times this has about unit variance in each of K directions"""
    farthest: Tensor
    """(S,): largest length of an atom it was trained on there; 0 for an element without atoms"""


class Ensemble(NamedTuple):
    """All that a model file holds: one model or several of one config, and what is known of where to trust them."""

    model_config: ModelConfig
    members: Params
    """every leaf with a leading axis E, which is 1 for one model"""
    calibration: Calibration | None = None
    domain: Domain | None = None

    @property
    def n_members(self) -> int:
        """E."""
        return len(self.members.self_energies)


class NeighbourTables(NamedTuple):
    """Who is whose neighbour; a row is padded with the index of its own centre."""

    neighbours: tuple[Tensor, ...]
    """one (A, K) a species: indices of each atom's neighbours of that species"""
    pairs: tuple[Tensor, ...]
    """one (A, P, 2) an unordered pair of species: indices of each atom's pairs of neighbours"""


Pullback = Callable[["Tensor"], "Tensor"]
"""dE/dAEV (L,S,N,D) -> dE/dxyz (L,S,N,3)"""


class Features(Protocol):
    """What a batch feeds the networks; `potential.features` has the kinds."""

    def aevs_and_pullback(self, config: AEVConfig) -> tuple[Tensor, Pullback]:
        """AEVs (S,N,D), and the function that turns dE/dAEV into dE/dxyz."""
        ...


class Batch(NamedTuple):
    """Structures packed by species: (S,N) slots, of which the last ones of each species may be padding.

    Where the members of an ensemble have structures of their own, slots are (E S,N), structures are numbered through up
    to E M, and all labels and counts have a leading axis E.
    """

    features: Features
    structure_index: Tensor
    """(S,N): the structure that an atom belongs to; M for padding"""
    energies: Tensor
    """(M,L) eV, self energies subtracted; 0 where there is no label"""
    energy_mask: Tensor
    """(M,L) 1 where there is an energy, 0 where a label is missing or the structure is padding"""
    forces: Tensor | None
    """(S,N,L,3) eV/Å; 0 where there is no label"""
    component_weights: Tensor | None
    """(S,N,L) 1/(3 atoms of its structure), 0 where forces are missing or the atom is padding"""
    n_energies: Tensor
    """(L,) structures with an energy in the whole batch, of which this may be one rank's share"""
    n_forces: Tensor | None
    """(L,) structures with forces in the whole batch"""
    share: Tensor
    """() part of the whole batch's structures that is here: 1 where one rank has them all"""


class ErrorSums(NamedTuple):
    """Sums over errors, one a fidelity level (L,), so that batches and ranks add up to exact means."""

    absolute: Tensor
    squared: Tensor
    largest: Tensor
    number: Tensor


class StepSums(NamedTuple):
    """What a step reports: energy errors (eV) and force component errors (eV/Å)."""

    energy: ErrorSums
    force: ErrorSums | None


class Trainable(NamedTuple):
    """What the optimizer moves."""

    networks: tuple[Networks, ...]
    log_variances: Tensor
    """(T,) s of the loss weights exp(-s), one a task; T = 0 where the weights are fixed"""


class OptimizerState(NamedTuple):
    """What an optimizer remembers; `step` counts updates."""

    step: Tensor
    moments: tuple[Trainable, ...]
    """Adam and AdamW: first and second moment; SGD: momentum"""


class TrainState(NamedTuple):
    """All that a training step reads and writes; of an ensemble, every tensor has a leading axis of members."""

    params: Params
    log_variances: Tensor
    """(T,); see `Trainable`"""
    optimizer: OptimizerState
    learning_rate: Tensor
    force_weight: Tensor
    """(), where the loss weights are not learned"""
    average: tuple[Networks, ...] = ()
    """running mean of the networks over the steps; () where none is taken"""

    @property
    def trainable(self) -> Trainable:
        """What the optimizer moves."""
        return Trainable(self.params.networks, self.log_variances)

    @property
    def evaluated(self) -> Params:
        """The parameters that are validated and kept: the mean, where one is taken."""
        return self.params._replace(networks=self.average) if self.average else self.params

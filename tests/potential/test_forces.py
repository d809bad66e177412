"""Forces: both paths, in batches of mixed sizes, against central differences and Newton's third law."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.potential.energy import energy, init_params
from pykinml_func.potential.forces import batch_energies, batch_energies_and_forces, energy_and_forces
from pykinml_func.types import Networks, Structures, atom_rows

PATH_TOLERANCE = 1e-10  # eV/Å between the two paths: rounding alone
DIFFERENCE_TOLERANCE = 1e-6  # eV/Å; central differences with step 1e-5 Å
ROUNDING = 1e-12  # eV, without self energies

MODEL = ModelConfig(
    aev=AEVConfig(elements=("C", "H", "O"), n_radial=5, n_angular_radial=3, n_angular=4),
    neurons=(8, 5, 1),
    activations=("gaussian", "tanh", "identity"),
)
DRAWN = init_params(MODEL, torch.Generator().manual_seed(3))
PARAMS = DRAWN._replace(
    networks=Networks(tuple(4 * weight for weight in DRAWN.networks.weights), DRAWN.networks.biases)
)
"""Steeper than they are drawn, so that made-up atoms feel forces of about 1 eV/Å."""

FORMULAS = ["CH4", "H", "C2H4O", "O2", "CH3OH", "H2O", "CO", "C3H4", "CH4", "HOCO"]

Structured = Callable[..., Structures]
Sourced = Callable[[Structures, AEVConfig, str], Source]


def evaluate(source: Source, batch_size: int, order: list[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Energies (M,) and forces (A,3) in the order of the source, evaluated by batches in `order`."""
    members = np.arange(len(source.offsets) - 1)
    packer = Packer(source, members, batch_size, torch.float64, torch.device("cpu"))
    chosen = members if order is None else np.array(order)
    energies, forces = np.empty(len(members)), np.empty_like(source.positions)
    for index, batch in zip(packer.cut(chosen), packer.batches(chosen), strict=True):
        arguments = (MODEL, PARAMS.networks, batch.features, batch.structure_index, packer.batch_size)
        values, gradient = batch_energies_and_forces(*arguments)
        torch.testing.assert_close(batch_energies(*arguments), values, rtol=0, atol=ROUNDING)
        energies[index] = values[batch.structure_mask.bool()].numpy()
        forces[atom_rows(source.offsets, index)] = packer.unpack(index, gradient)
    return energies, forces


def one_by_one(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """The same by `energy_and_forces` of each structure."""
    pairs = [
        energy_and_forces(MODEL, PARAMS, torch.from_numpy(source.species[a:b]), torch.from_numpy(source.positions[a:b]))
        for a, b in zip(source.offsets[:-1], source.offsets[1:], strict=True)
    ]
    return np.array([value.item() for value, _ in pairs]), np.concatenate([forces.numpy() for _, forces in pairs])


@pytest.mark.parametrize("contents", ["jacobians", "positions"])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 100])
def test_mixed_batches_equal_single_structures_whatever_the_padding(
    make_structures: Structured, make_source: Sourced, contents: str, batch_size: int
):
    source = make_source(make_structures(FORMULAS), MODEL.aev, contents)
    energies, forces = evaluate(source, batch_size)
    expected = one_by_one(source)
    np.testing.assert_allclose(energies, expected[0], rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(forces, expected[1], rtol=0, atol=PATH_TOLERANCE)


def test_forces_are_minus_the_gradient_by_central_differences(make_structures: Structured, make_source: Sourced):
    source = make_source(make_structures(FORMULAS), MODEL.aev, "jacobians")
    _, forces = evaluate(source, 4)
    assert np.abs(forces).max() > 0.1, "made-up atoms must feel forces"
    step = 1e-5  # Å
    for a, b in zip(source.offsets[:-1], source.offsets[1:], strict=True):
        species, positions = torch.from_numpy(source.species[a:b]), torch.from_numpy(source.positions[a:b])
        moves = step * torch.eye(3 * (b - a), dtype=torch.float64).reshape(-1, b - a, 3)
        values = torch.func.vmap(lambda x, s=species: energy(MODEL, PARAMS, s, x))(
            torch.cat([positions + moves, positions - moves])
        )
        expected = -(values[: len(moves)] - values[len(moves) :]).reshape(-1, 3) / (2 * step)
        np.testing.assert_allclose(forces[a:b], expected, rtol=0, atol=DIFFERENCE_TOLERANCE)


@given(seed=st.integers(0, 2**31), batch_size=st.integers(1, 9))
def test_both_paths_agree_in_any_batch(make_structures: Structured, make_source: Sourced, seed: int, batch_size: int):
    generator = np.random.default_rng(seed)
    structures = make_structures([FORMULAS[k] for k in generator.integers(0, len(FORMULAS), 6)], seed)
    order = generator.permutation(6).tolist()
    cached = evaluate(make_source(structures, MODEL.aev, "jacobians"), batch_size, order)
    recomputed = evaluate(make_source(structures, MODEL.aev, "positions"), batch_size, order)
    np.testing.assert_allclose(cached[0], recomputed[0], rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(cached[1], recomputed[1], rtol=0, atol=PATH_TOLERANCE)


@pytest.mark.parametrize("contents", ["jacobians", "positions"])
def test_net_force_and_torque_vanish(make_structures: Structured, make_source: Sourced, contents: str):
    structures = make_structures(FORMULAS)
    _, forces = evaluate(make_source(structures, MODEL.aev, contents), 4)
    torques = np.cross(structures.positions, forces)
    np.testing.assert_allclose(np.add.reduceat(forces, structures.offsets[:-1]), 0, atol=PATH_TOLERANCE)
    np.testing.assert_allclose(np.add.reduceat(torques, structures.offsets[:-1]), 0, atol=PATH_TOLERANCE)


@pytest.mark.parametrize("beta", [0.95, 1.0])
@pytest.mark.parametrize("contents", ["jacobians", "positions"])
def test_forces_of_straight_and_lonely_atoms_are_finite(
    make_structures: Structured, make_source: Sourced, contents: str, beta: float
):
    model = MODEL.model_copy(update={"aev": MODEL.aev.model_copy(update={"beta": beta})})
    structures = make_structures(["C2H2", "O", "HO", "CH4"])
    structures.positions[:4] = [[0, 0, 0], [1.2, 0, 0], [-1.06, 0, 0], [2.26, 0, 0]]
    structures.positions[5:7] = [[0, 0, 0], [model.aev.radial_cutoff, 0, 0]]
    source = make_source(structures, model.aev, contents)
    packer = Packer(source, np.arange(4), 4, torch.float64, torch.device("cpu"))
    batch = packer.pack(np.arange(4))
    energies, forces = batch_energies_and_forces(model, PARAMS.networks, batch.features, batch.structure_index, 4)
    assert energies.isfinite().all()
    assert forces.isfinite().all()
    straight = packer.unpack(np.arange(4), forces)[:4]
    np.testing.assert_allclose(straight[:, 1:], 0, atol=PATH_TOLERANCE)  # a straight molecule pulls along its axis only
    np.testing.assert_allclose(packer.unpack(np.arange(4), forces)[4], 0, atol=PATH_TOLERANCE)


def test_self_energies_shift_the_energy_alone(make_structures: Structured, make_source: Sourced):
    source = make_source(make_structures(["CH4"]), MODEL.aev, "positions")
    species, positions = torch.from_numpy(source.species), torch.from_numpy(source.positions)
    shifted = PARAMS._replace(self_energies=torch.tensor([-1000.0, -10.0, 0.0], dtype=torch.float64))
    value, forces = energy_and_forces(MODEL, PARAMS, species, positions)
    moved, same = energy_and_forces(MODEL, shifted, species, positions)
    assert moved.item() == pytest.approx(value.item() - 1040, abs=1e-11)
    torch.testing.assert_close(same, forces, rtol=0, atol=ROUNDING)

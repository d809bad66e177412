"""Forces: both paths, every level, in batches of mixed sizes, against central differences and Newton's third law."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.potential.energy import init_params, level_energies
from pykinml_func.potential.forces import (
    batch_energies,
    batch_energies_and_forces,
    energy_and_forces,
    level_energies_and_forces,
)
from pykinml_func.types import Networks, Params, Structures, atom_rows

PATH_TOLERANCE = 1e-10  # eV/Å between the two paths: rounding alone
DIFFERENCE_TOLERANCE = 1e-6  # eV/Å; central differences with step 1e-5 Å
ROUNDING = 1e-12  # eV, without self energies

FORMULAS = ["CH4", "H", "C2H4O", "O2", "CH3OH", "H2O", "CO", "C3H4", "CH4", "HOCO"]

Structured = Callable[..., Structures]
Sourced = Callable[[Structures, AEVConfig, str], Source]


def model_of(fidelities: tuple[int, ...], beta: float = 0.95) -> ModelConfig:
    return ModelConfig(
        aev=AEVConfig(elements=("C", "H", "O"), n_radial=5, n_angular_radial=3, n_angular=4, beta=beta),
        neurons=(8, 5, 1),
        activations=("gaussian", "tanh", "identity"),
        fidelities=fidelities,
    )


def params_of(model: ModelConfig) -> Params:
    """Steeper than they are drawn, so that made-up atoms feel forces of about 1 eV/Å."""
    drawn = init_params(model, torch.Generator().manual_seed(3))
    return drawn._replace(
        networks=tuple(
            Networks(tuple(4 * weight for weight in level.weights), level.biases) for level in drawn.networks
        )
    )


MODEL, CHAIN = model_of((1,)), model_of((0, 1, 5))
PARAMS = {MODEL: params_of(MODEL), CHAIN: params_of(CHAIN)}

each_model = pytest.mark.parametrize("model", [MODEL, CHAIN], ids=["one level", "three levels"])
each_path = pytest.mark.parametrize("contents", ["jacobians", "positions"])


def evaluate(
    model: ModelConfig, source: Source, batch_size: int, order: list[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Energies (M,L) and forces (A,L,3) in the order of the source, evaluated by batches in `order`."""
    members = np.arange(len(source.offsets) - 1)
    packer = Packer(source, members, batch_size, torch.float64, torch.device("cpu"))
    chosen = members if order is None else np.array(order)
    energies = np.empty((len(members), model.n_levels))
    forces = np.empty((len(source.positions), model.n_levels, 3))
    for index, batch in zip(packer.cut(chosen), packer.batches(chosen), strict=True):
        arguments = (model, PARAMS[model].networks, batch.features, batch.structure_index, packer.batch_size)
        values, pulls = batch_energies_and_forces(*arguments)
        torch.testing.assert_close(batch_energies(*arguments), values, rtol=0, atol=ROUNDING)
        assert not values[len(index) :].any(), "an absent structure has no energy"
        energies[index] = values[: len(index)].numpy()
        forces[atom_rows(source.offsets, index)] = packer.unpack(index, pulls)
    return energies, forces


def each_structure(source: Source) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Species and positions."""
    species, positions = torch.from_numpy(source.species), torch.from_numpy(source.positions)
    return [(species[a:b], positions[a:b]) for a, b in zip(source.offsets[:-1], source.offsets[1:], strict=True)]


def one_by_one(model: ModelConfig, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """What `evaluate` gives, by `level_energies_and_forces` of each structure."""
    pairs = [level_energies_and_forces(model, PARAMS[model], *structure) for structure in each_structure(source)]
    forces = [forces.movedim(0, 1).numpy() for _, forces in pairs]
    return np.stack([values.numpy() for values, _ in pairs]), np.concatenate(forces)


@each_path
@each_model
@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 100])
def test_mixed_batches_equal_single_structures_whatever_the_padding(
    make_structures: Structured, make_source: Sourced, model: ModelConfig, contents: str, batch_size: int
):
    source = make_source(make_structures(FORMULAS), model.aev, contents)
    energies, forces = evaluate(model, source, batch_size)
    expected = one_by_one(model, source)
    np.testing.assert_allclose(energies, expected[0], rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(forces, expected[1], rtol=0, atol=PATH_TOLERANCE)


@each_path
@each_model
def test_forces_are_minus_the_gradient_of_their_own_level_by_central_differences(
    make_structures: Structured, make_source: Sourced, model: ModelConfig, contents: str
):
    source = make_source(make_structures(FORMULAS), model.aev, contents)
    _, forces = evaluate(model, source, 4)
    assert np.abs(forces).max(axis=(0, 2)).min() > 0.1, "made-up atoms must feel forces at each level"
    step = 1e-5  # Å
    for (species, positions), start in zip(each_structure(source), source.offsets[:-1], strict=True):
        n = len(species)
        moves = step * torch.eye(3 * n, dtype=torch.float64).reshape(-1, n, 3)
        values = torch.func.vmap(lambda x, s=species: level_energies(model, PARAMS[model], s, x))(
            torch.cat([positions + moves, positions - moves])
        )
        slopes = (values[: 3 * n] - values[3 * n :]) / (2 * step)
        expected = -slopes.reshape(n, 3, model.n_levels).movedim(2, 1)
        np.testing.assert_allclose(forces[start : start + n], expected, rtol=0, atol=DIFFERENCE_TOLERANCE)


@each_model
@given(seed=st.integers(0, 2**31), batch_size=st.integers(1, 9))
def test_both_paths_agree_in_any_batch(
    make_structures: Structured, make_source: Sourced, model: ModelConfig, seed: int, batch_size: int
):
    generator = np.random.default_rng(seed)
    structures = make_structures([FORMULAS[k] for k in generator.integers(0, len(FORMULAS), 6)], seed)
    order = generator.permutation(6).tolist()
    cached = evaluate(model, make_source(structures, model.aev, "jacobians"), batch_size, order)
    recomputed = evaluate(model, make_source(structures, model.aev, "positions"), batch_size, order)
    np.testing.assert_allclose(cached[0], recomputed[0], rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(cached[1], recomputed[1], rtol=0, atol=PATH_TOLERANCE)


@each_path
@each_model
def test_net_force_and_torque_vanish(
    make_structures: Structured, make_source: Sourced, model: ModelConfig, contents: str
):
    structures = make_structures(FORMULAS)
    _, forces = evaluate(model, make_source(structures, model.aev, contents), 4)
    torques = np.cross(structures.positions[:, None], forces)
    np.testing.assert_allclose(np.add.reduceat(forces, structures.offsets[:-1]), 0, atol=PATH_TOLERANCE)
    np.testing.assert_allclose(np.add.reduceat(torques, structures.offsets[:-1]), 0, atol=PATH_TOLERANCE)


@each_model
def test_forces_turn_with_the_molecule(make_structures: Structured, make_source: Sourced, model: ModelConfig):
    structures = make_structures(FORMULAS)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    turned = structures._replace(positions=structures.positions @ rotation + [3.0, -20.0, 7.0])
    before, after = (evaluate(model, make_source(s, model.aev, "positions"), 4) for s in (structures, turned))
    np.testing.assert_allclose(after[0], before[0], rtol=0, atol=PATH_TOLERANCE)
    np.testing.assert_allclose(after[1], before[1] @ rotation, rtol=0, atol=10 * PATH_TOLERANCE)


@pytest.mark.parametrize("beta", [0.95, 1.0])
@each_path
def test_forces_of_straight_and_lonely_atoms_are_finite(
    make_structures: Structured, make_source: Sourced, contents: str, beta: float
):
    model = model_of((0, 1), beta)
    structures = make_structures(["C2H2", "O", "HO", "CH4"])
    structures.positions[:4] = [[0, 0, 0], [1.2, 0, 0], [-1.06, 0, 0], [2.26, 0, 0]]
    structures.positions[5:7] = [[0, 0, 0], [model.aev.radial_cutoff, 0, 0]]
    source = make_source(structures, model.aev, contents)
    packer = Packer(source, np.arange(4), 4, torch.float64, torch.device("cpu"))
    batch = packer.pack(np.arange(4))
    networks = params_of(model).networks
    energies, forces = batch_energies_and_forces(model, networks, batch.features, batch.structure_index, 4)
    assert energies.isfinite().all()
    assert forces.isfinite().all()
    straight = packer.unpack(np.arange(4), forces)[:4]
    # a straight molecule pulls along its axis only
    np.testing.assert_allclose(straight[..., 1:], 0, atol=PATH_TOLERANCE)
    np.testing.assert_allclose(packer.unpack(np.arange(4), forces)[4], 0, atol=PATH_TOLERANCE)


@each_model
def test_energy_and_forces_are_those_of_the_highest_level(
    make_structures: Structured, make_source: Sourced, model: ModelConfig
):
    (structure,) = each_structure(make_source(make_structures(["CH3OH"]), model.aev, "positions"))
    value, forces = energy_and_forces(model, PARAMS[model], *structure)
    values, of_levels = level_energies_and_forces(model, PARAMS[model], *structure)
    torch.testing.assert_close(value, values[-1], rtol=0, atol=ROUNDING)
    torch.testing.assert_close(forces, of_levels[-1], rtol=0, atol=PATH_TOLERANCE)


def test_self_energies_shift_the_energies_alone(make_structures: Structured, make_source: Sourced):
    (structure,) = each_structure(make_source(make_structures(["CH4"]), CHAIN.aev, "positions"))
    selves = torch.tensor([[-1000.0, -10.0, 0.0], [0.0, 0.0, 0.0], [-2000.0, 5.0, 1.0]], dtype=torch.float64)
    shifted = PARAMS[CHAIN]._replace(self_energies=selves)
    values, forces = level_energies_and_forces(CHAIN, PARAMS[CHAIN], *structure)
    moved, same = level_energies_and_forces(CHAIN, shifted, *structure)
    np.testing.assert_allclose(moved - values, [-1040, 0, -1980], rtol=0, atol=1e-11)
    torch.testing.assert_close(same, forces, rtol=0, atol=ROUNDING)

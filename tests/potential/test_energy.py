"""Energies: symmetries, additivity, and the transforms of torch.func that research code uses on them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.potential.aev import aevs
from pykinml_func.potential.energy import energy, init_params
from pykinml_func.potential.mlp import atomic_energy
from pykinml_func.types import Networks, Params

ROUNDING = 1e-12  # eV, of sums of the order of 1 eV
LARGE_ROUNDING = 1e-11  # eV, where self energies of -1e3 eV an atom are summed
DIFFERENCE_TOLERANCE = 1e-6  # eV/Å and eV/Å²; central differences with step 1e-5 Å

SELF_ENERGIES = torch.tensor([[-1035.1, -15.6, -2041.3]], dtype=torch.float64)
SPECIES = torch.tensor([0, 1, 2, 1, 0])

Positions = Callable[[int, int], np.ndarray]


def small_model(biases: bool = True, beta: float = 0.95) -> ModelConfig:
    aev = AEVConfig(elements=("C", "H", "O"), n_radial=5, n_angular_radial=3, n_angular=4, beta=beta)
    return ModelConfig(aev=aev, neurons=(6, 4, 1), activations=("gaussian", "silu", "identity"), biases=biases)


MODEL = small_model()


def params_of(model: ModelConfig, seed: int = 0) -> Params:
    """Steeper networks than are drawn, so that made-up atoms feel forces of about 1 eV/Å."""
    ((weights, biases),) = init_params(model, torch.Generator().manual_seed(seed)).networks
    return Params((Networks(tuple(4 * weight for weight in weights), biases),), SELF_ENERGIES)


PARAMS = params_of(MODEL)


def ensemble(members: list[Params]) -> Params:
    return torch.utils._pytree.tree_map(lambda *leaves: torch.stack(leaves), *members)


@given(seed=st.integers(0, 2**31))
def test_like_atoms_may_change_places(make_positions: Positions, seed: int):
    generator = np.random.default_rng(seed)
    positions, order = torch.from_numpy(make_positions(5, seed)), torch.from_numpy(generator.permutation(5))
    before, after = energy(MODEL, PARAMS, SPECIES, positions), energy(MODEL, PARAMS, SPECIES[order], positions[order])
    assert after.item() == pytest.approx(before.item(), abs=LARGE_ROUNDING)


@given(seed=st.integers(0, 2**31))
def test_rotation_and_translation_change_nothing(make_positions: Positions, seed: int):
    generator = np.random.default_rng(seed)
    positions = make_positions(5, seed)
    moved = positions @ np.linalg.qr(generator.normal(size=(3, 3)))[0] + generator.uniform(-20, 20, 3)
    before, after = (energy(MODEL, PARAMS, SPECIES, torch.from_numpy(x)).item() for x in (positions, moved))
    assert after == pytest.approx(before, abs=LARGE_ROUNDING)


def test_exchanging_unlike_atoms_matters(make_positions: Positions):
    positions = torch.from_numpy(make_positions(5, 0))
    swapped = positions[[1, 0, 2, 3, 4]]
    assert abs(energy(MODEL, PARAMS, SPECIES, positions) - energy(MODEL, PARAMS, SPECIES, swapped)) > 1e-4


def test_distant_fragments_add_up(make_positions: Positions):
    first, second = torch.from_numpy(make_positions(5, 0)), torch.from_numpy(make_positions(3, 1))
    other = torch.tensor([2, 1, 1])
    apart = torch.tensor([30.0, 0.0, 0.0], dtype=torch.float64)  # Å, beyond both cutoffs
    together = energy(MODEL, PARAMS, torch.cat([SPECIES, other]), torch.cat([first, second + apart]))
    expected = energy(MODEL, PARAMS, SPECIES, first) + energy(MODEL, PARAMS, other, second)
    assert together.item() == pytest.approx(expected.item(), abs=LARGE_ROUNDING)


def test_an_energy_is_the_sum_of_its_atoms_networks_and_self_energies(make_positions: Positions):
    positions = torch.from_numpy(make_positions(5, 2))
    descriptors = aevs(MODEL.aev, SPECIES, positions)
    expected = 0.0
    for atom, element in enumerate(SPECIES.tolist()):
        layers = (tuple(leaf[element] for leaf in leaves) for leaves in PARAMS.networks[0])
        expected += atomic_energy(MODEL.activations, Networks(*layers), descriptors[atom]).item()
    bare = PARAMS._replace(self_energies=torch.zeros(1, 3, dtype=torch.float64))
    assert energy(MODEL, bare, SPECIES, positions).item() == pytest.approx(expected, abs=ROUNDING)
    selves = 2 * -1035.1 + 2 * -15.6 - 2041.3
    assert energy(MODEL, PARAMS, SPECIES, positions).item() == pytest.approx(expected + selves, abs=LARGE_ROUNDING)


def test_float32_networks_leave_self_energies_in_float64(make_positions: Positions):
    positions = torch.from_numpy(make_positions(5, 0))
    single = PARAMS._replace(networks=torch.utils._pytree.tree_map(Tensor.float, PARAMS.networks))
    value = energy(MODEL, single, SPECIES, positions)
    assert value.dtype == torch.float64
    # float32 holds the sum of -4142 eV to 2.4e-4 eV only
    assert value.item() == pytest.approx(energy(MODEL, PARAMS, SPECIES, positions).item(), abs=1e-5)


def test_vmap_over_positions(make_positions: Positions):
    many = torch.from_numpy(np.stack([make_positions(5, seed) for seed in range(4)]))
    values = vmap(lambda x: energy(MODEL, PARAMS, SPECIES, x))(many)
    expected = torch.stack([energy(MODEL, PARAMS, SPECIES, x) for x in many])
    torch.testing.assert_close(values, expected, rtol=0, atol=LARGE_ROUNDING)


def test_vmap_over_an_ensemble(make_positions: Positions):
    members = [params_of(MODEL, seed) for seed in range(3)]
    positions = torch.from_numpy(make_positions(5, 0))
    values = vmap(lambda params: energy(MODEL, params, SPECIES, positions))(ensemble(members))
    expected = torch.stack([energy(MODEL, params, SPECIES, positions) for params in members])
    torch.testing.assert_close(values, expected, rtol=0, atol=LARGE_ROUNDING)
    assert len(values.unique()) == 3


def test_derivatives_by_position_are_central_differences(make_positions: Positions):
    positions = torch.from_numpy(make_positions(5, 1))
    step = 1e-5
    moves = step * torch.eye(15, dtype=torch.float64).reshape(15, 5, 3)

    def slope(function: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.stack([(function(positions + move) - function(positions - move)) / (2 * step) for move in moves])

    def value(x: Tensor) -> Tensor:
        # the self energies are constant, and would cost the differences six digits
        return energy(MODEL, PARAMS._replace(self_energies=torch.zeros_like(SELF_ENERGIES)), SPECIES, x)

    gradient = grad(value)(positions)
    torch.testing.assert_close(gradient, slope(value).reshape(5, 3), rtol=0, atol=DIFFERENCE_TOLERANCE)
    assert gradient.abs().max() > 0.1, "made-up atoms must feel forces"
    curvature = hessian(value)(positions).reshape(15, 15)
    torch.testing.assert_close(curvature, curvature.T, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(curvature, slope(grad(value)).reshape(15, 15), rtol=0, atol=DIFFERENCE_TOLERANCE)


def test_jacrev_over_a_batch_is_each_structures_gradient(make_positions: Positions):
    many = torch.from_numpy(np.stack([make_positions(5, seed) for seed in range(3)]))
    jacobian = jacrev(vmap(lambda x: energy(MODEL, PARAMS, SPECIES, x)))(many)
    for m in range(3):
        expected = torch.zeros_like(many)
        expected[m] = grad(energy, argnums=3)(MODEL, PARAMS, SPECIES, many[m])
        torch.testing.assert_close(jacobian[m], expected, rtol=0, atol=ROUNDING)


def test_the_gradient_by_params_knows_the_composition(make_positions: Positions):
    gradient = grad(energy, argnums=1)(MODEL, PARAMS, SPECIES, torch.from_numpy(make_positions(5, 0)))
    assert gradient.self_energies.tolist() == [[2, 2, 1]]
    # the last bias is added once an atom
    assert gradient.networks[0].biases[-1].flatten().tolist() == [2, 2, 1]


@pytest.mark.parametrize("beta", [0.95, 1.0])
@pytest.mark.parametrize("species", [[0], [0, 1], [0, 0, 1, 1]], ids=["one atom", "two atoms", "collinear"])
def test_derivatives_are_finite_for_small_and_straight_molecules(species: list[int], beta: float):
    model = small_model(beta=beta)
    positions = torch.tensor([[0.0, 0, 0], [1.2, 0, 0], [-1.06, 0, 0], [2.26, 0, 0]], dtype=torch.float64)[
        : len(species)
    ]
    params = params_of(model)
    for derivative in (grad(energy, argnums=3), hessian(energy, argnums=3)):
        assert derivative(model, params, torch.tensor(species), positions).isfinite().all()


@pytest.mark.parametrize("index", [-1, 3])
def test_a_species_outside_the_elements_is_refused(index: int):
    with pytest.raises(ValueError, match="indices into the 3 elements"):
        energy(MODEL, PARAMS, torch.tensor([0, index]), torch.rand(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("biases", [True, False])
def test_init_params_depends_on_the_generator_alone(biases: bool):
    model = small_model(biases)
    torch.manual_seed(1)
    first = init_params(model, torch.Generator().manual_seed(7))
    torch.manual_seed(2)
    again, other = (
        init_params(model, torch.Generator().manual_seed(7)),
        init_params(model, torch.Generator().manual_seed(8)),
    )
    (mine,), (same,), (unlike,) = first.networks, again.networks, other.networks
    assert all(torch.equal(a, b) for a, b in zip(mine.weights, same.weights, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(mine.weights, unlike.weights, strict=True))
    assert len(mine.biases) == (3 if biases else 0)


def test_init_params_are_bounded_by_the_number_of_inputs():
    params = init_params(MODEL, torch.Generator().manual_seed(0))
    inputs = (MODEL.aev.length, 6, 4)
    for weight, bias, fan_in in zip(*params.networks[0], inputs, strict=True):
        assert weight.shape == (3, bias.shape[1], fan_in)
        bound = 1 / math.sqrt(fan_in)
        assert max(weight.abs().max(), bias.abs().max()) <= bound
        assert weight.abs().max() > 0.7 * bound
    assert torch.equal(params.self_energies, torch.zeros(1, 3, dtype=torch.float64))
    single = init_params(MODEL, torch.Generator().manual_seed(0), torch.float32)
    assert torch.equal(single.networks[0].weights[0], params.networks[0].weights[0].float())
    assert single.self_energies.dtype == torch.float64


@pytest.mark.parametrize("first", ["grad", "hessian", "jacrev", "jacfwd", "vmap", "inference"])
def test_a_transform_that_comes_first_spoils_nothing_for_the_next(first: str, make_positions: Positions):
    # a composition that no other test has, so that nothing of it is cached yet
    length = 7 + ["grad", "hessian", "jacrev", "jacfwd", "vmap", "inference"].index(first)
    species, positions = torch.tensor([1, 0] * length)[:length], torch.from_numpy(make_positions(length, 3))

    def of(x: Tensor) -> Tensor:
        return energy(MODEL, PARAMS, species, x)

    with torch.inference_mode(first == "inference"):
        if first == "inference":
            of(positions)
        elif first == "vmap":
            vmap(hessian(of))(positions.unsqueeze(0))
        else:
            {"grad": grad, "hessian": hessian, "jacrev": jacrev, "jacfwd": jacfwd}[first](of)(positions)
    slope = grad(of)(positions)
    tracked = positions.clone().requires_grad_()
    of(tracked).backward()
    torch.testing.assert_close(tracked.grad, slope)

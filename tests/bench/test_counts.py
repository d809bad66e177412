"""Flops, exponentials and bytes against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.counts import Near, Work, aev_work, multiplications, near_counts, network_work, task_work
from pykinml_func import AEVConfig, ModelConfig, init_params
from pykinml_func.config import TrainConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.training.optimizers import build_optimizer
from pykinml_func.training.step import Objective, build_predict_step, build_train_step, init_state

TINY = AEVConfig(elements=("H",), n_radial=1, n_angular_radial=1, n_angular=1, radial_cutoff=3, angular_cutoff=2)
"""D = 1 + 1"""
MODEL = ModelConfig(aev=TINY, neurons=(3, 1), activations=("gaussian", "identity"), biases=False)
"""W = 2 * 3 + 3 * 1 = 9, W1 = 6"""


def test_neighbours_and_angles_of_four_atoms_on_a_line():
    """At 0, 1.5, 3 and 5.5 Å: within 3 Å 0-1, 0-2, 1-2, 2-3; within 2 Å 0-1 and 1-2, so one angle, at the second."""
    line = np.array([[0.0, 0, 0], [1.5, 0, 0], [3, 0, 0], [5.5, 0, 0]])
    assert near_counts(TINY, [line]) == Near(atoms=4, pairs=8, angles=1, all_pairs=12)
    assert near_counts(TINY, [line, line[:1]]) == Near(5, 8, 1, 12)


@pytest.mark.parametrize(
    ("task", "flops"), [("energies", 18), ("energies_and_forces", 36), ("train_energies", 42), ("train_forces", 96)]
)
def test_network_of_nine_weights(task: str, flops: int):
    assert network_work(MODEL, 1, task) == Work(flops, 3)  # type: ignore[arg-type]
    assert network_work(MODEL, 10, task) == Work(10 * flops, 30)  # type: ignore[arg-type]


@pytest.mark.parametrize("forces", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_products_are_those_that_a_step_computes(forces: bool, training: bool):
    """torch counts the products of a step over two atoms without padding; the last layer's are one row, which torch
    may multiply in another way, so that a little is missing.
    """
    aev = AEVConfig(elements=("C", "H"))
    config = ModelConfig(aev=aev, biases=False)
    positions = np.array([[0.0, 0, 0], [1.1, 0, 0]])
    source = Source(np.array([0, 1]), positions, np.array([0, 2]), 2, np.zeros((1, 1)))
    if forces:
        source = source._replace(forces=np.zeros((2, 1, 3)), has_forces=np.ones((1, 1), dtype=bool))
    else:
        source = source._replace(aevs=np.ones((2, aev.length)))
    batch = Packer(source, np.array([0]), 1, torch.float64, torch.device("cpu")).pack(np.array([0]))
    params = init_params(config, torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        if training:
            optimizer, objective = build_optimizer(TrainConfig()), Objective(forces)
            step = build_train_step(config, optimizer, objective)
            step(init_state(params, optimizer, objective, 1e-3), batch)
        else:
            build_predict_step(config, forces)(params, batch)
    task = (
        f"train_{'forces' if forces else 'energies'}" if training else "energies_and_forces" if forces else "energies"
    )
    expected = network_work(config, 2, task).flops  # type: ignore[arg-type]
    assert 0.9 * expected <= counter.get_total_flops() <= 1.1 * expected


def test_aevs_of_one_pair_and_one_angle():
    """zeta 8 is three multiplications."""
    pair, angle = Near(2, 1, 0, 2), Near(3, 0, 1, 6)
    assert aev_work(TINY, pair, "aevs") == Work(75, 1)
    assert aev_work(TINY, pair, "pull") == Work(80, 1)
    assert aev_work(TINY, angle, "aevs") == Work(2 + 4 + 7 + 25, 1)
    assert aev_work(TINY, angle, "push") == Work(4 + 7 + 11 + 65, 1)
    wide = AEVConfig(elements=("H",), n_radial=16, n_angular_radial=8, n_angular=4)
    assert aev_work(wide, pair, "aevs").exponentials == 16
    assert aev_work(wide, angle, "aevs") == Work(2 * 32 + 32 + 7 * 4 + 25, 8)


def test_powers_are_raised_by_squaring():
    assert [multiplications(power) for power in (1, 2, 3, 8, 32)] == [0, 1, 2, 3, 5]


def test_bytes_are_what_is_cached_and_the_labels():
    near = Near(atoms=3, pairs=6, angles=3, all_pairs=6)
    sizes = {
        features: task_work(MODEL, near, "train_forces", features, 8).n_bytes  # type: ignore[arg-type]
        for features in ("aevs", "jacobian", "positions")
    }
    labels = 3 * 3 * 8
    assert sizes["aevs"] == 3 * 2 * 8 + labels
    assert sizes["jacobian"] == 3 * 2 * 8 + labels + 6 * 3 * 2 * 8
    assert sizes["positions"] == 3 * 3 * 8 + labels


def test_the_positions_path_adds_what_the_task_needs_of_the_aevs():
    near = Near(atoms=3, pairs=6, angles=3, all_pairs=6)
    alone = network_work(MODEL, 3, "energies_and_forces").plus(aev_work(TINY, near, "aevs"))
    found = task_work(MODEL, near, "energies_and_forces", "positions", 4)
    assert found == alone.plus(aev_work(TINY, near, "pull")).plus(Work(n_bytes=36))
    assert task_work(MODEL, near, "energies", "positions", 4).flops < alone.flops

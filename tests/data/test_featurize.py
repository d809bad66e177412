"""AEVs of many structures: each structure's own, from either backend, in any mixture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pykinml_func import aev_jacobians, aevs
from pykinml_func.config import AEVConfig
from pykinml_func.data import featurize
from pykinml_func.data.elements import species_of
from pykinml_func.data.featurize import check_backend, fill_aevs, fill_jacobians, jacobian_shape, pair_offsets
from pykinml_func.errors import ConfigError
from pykinml_func.types import Structures

CONFIG = AEVConfig(elements=("C", "H", "O"), n_radial=5, n_angular_radial=3, n_angular=4)
FORMULAS = ["CH4", "H", "CH3OH", "CO", "CH4", "CH3OH", "OH2", "H2O", "CH4"]
VALUE_TOLERANCE = 1e-12
JACOBIAN_TOLERANCE = 1e-10  # 1/Å

Structured = Callable[..., Structures]


def filled(config: AEVConfig, structures: Structures, backend: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """AEVs, Jacobians of all pairs, and what `advance` heard."""
    rows = np.full((len(structures.numbers), config.length), np.nan)
    blocks = np.full(jacobian_shape(config, structures.sizes), np.nan)
    heard: list[int] = []
    fill_aevs(config, structures, backend, rows, heard.append)
    fill_jacobians(config, structures, backend, blocks, heard.append)
    return rows, blocks, heard


def assert_each_structure_has_its_own(
    make_structures: Structured, make_dense: Callable[..., np.ndarray], backend: str
) -> None:
    structures = make_structures(FORMULAS)
    rows, blocks, heard = filled(CONFIG, structures, backend)
    assert sum(heard) == 2 * len(FORMULAS)
    species = torch.from_numpy(species_of(CONFIG.elements, structures))
    starts = pair_offsets(structures.sizes)
    for m, (a, b) in enumerate(zip(structures.offsets[:-1], structures.offsets[1:], strict=True)):
        arguments = (CONFIG, species[a:b], torch.from_numpy(structures.positions[a:b]))
        np.testing.assert_allclose(rows[a:b], aevs(*arguments), rtol=0, atol=VALUE_TOLERANCE)
        jacobian = make_dense(CONFIG, species[a:b].numpy(), blocks[starts[m] : starts[m + 1]])
        np.testing.assert_allclose(jacobian, aev_jacobians(*arguments), rtol=0, atol=JACOBIAN_TOLERANCE)


@pytest.fixture(params=[1, featurize._CHUNK_BYTES], ids=["chunks of one", "large chunks"])
def either_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A structure at a time, and as many as there are."""
    monkeypatch.setattr(featurize, "_CHUNK_BYTES", request.param)


@pytest.mark.usefixtures("either_aevs", "either_chunks")
def test_each_structure_gets_its_own_aevs(make_structures: Structured, make_dense: Callable[..., np.ndarray]):
    assert_each_structure_has_its_own(make_structures, make_dense, "native")


@pytest.mark.usefixtures("either_chunks")
def test_each_structure_gets_its_own_aevs_from_aevmod(
    make_structures: Structured, make_dense: Callable[..., np.ndarray]
):
    assert_each_structure_has_its_own(make_structures, make_dense, "aevmod")


def test_a_jacobian_keeps_the_terms_that_a_neighbour_can_change():
    # of C, H and O: 5 radial ones, and 3 x 4 angular ones for each species of the third atom
    assert jacobian_shape(CONFIG, np.array([1, 2, 5, 0])) == (0 + 2 + 20 + 0, 3, 5 + 3 * 12)
    assert pair_offsets(np.array([1, 2, 5, 3], dtype=np.int32)).tolist() == [0, 0, 2, 22, 28]


def test_aevmod_refuses_grids_that_it_cannot_compute():
    check_backend(CONFIG, "aevmod")
    for changed in ({"zeta": 14.1}, {"radial_prefactor": 0.25}, {"radial_shifts": (1.0, 2.0, 3.0, 4.0, 5.0)}):
        config = CONFIG.model_copy(update=changed)
        with pytest.raises(ConfigError, match=rf"aevmod computes only .* got others \({next(iter(changed))}\)"):
            check_backend(config, "aevmod")
        check_backend(config, "native")

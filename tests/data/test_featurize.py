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
from pykinml_func.data.featurize import check_backend, fill_aevs, fill_jacobians, jacobian_offsets
from pykinml_func.errors import ConfigError
from pykinml_func.types import Structures

CONFIG = AEVConfig(elements=("C", "H", "O"), n_radial=5, n_angular_radial=3, n_angular=4)
FORMULAS = ["CH4", "H", "CH3OH", "CO", "CH4", "CH3OH", "OH2", "H2O", "CH4"]
VALUE_TOLERANCE = 1e-12
JACOBIAN_TOLERANCE = 1e-10  # 1/Å

Structured = Callable[..., Structures]


def filled(config: AEVConfig, structures: Structures, backend: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """AEVs, flat Jacobians, and what `advance` heard."""
    rows = np.full((len(structures.numbers), config.length), np.nan)
    flat = np.full(jacobian_offsets(structures.sizes, config.length)[-1], np.nan)
    heard: list[int] = []
    fill_aevs(config, structures, backend, rows, heard.append)
    fill_jacobians(config, structures, backend, flat, heard.append)
    return rows, flat, heard


@pytest.mark.parametrize("backend", ["native", "aevmod"])
@pytest.mark.parametrize("chunk_bytes", [1, featurize._CHUNK_BYTES], ids=["chunks of one", "large chunks"])
def test_each_structure_gets_its_own_aevs(
    make_structures: Structured, monkeypatch: pytest.MonkeyPatch, backend: str, chunk_bytes: int
):
    monkeypatch.setattr(featurize, "_CHUNK_BYTES", chunk_bytes)
    structures = make_structures(FORMULAS)
    rows, flat, heard = filled(CONFIG, structures, backend)
    assert sum(heard) == 2 * len(FORMULAS)
    species = torch.from_numpy(species_of(CONFIG.elements, structures))
    starts = jacobian_offsets(structures.sizes, CONFIG.length)
    for m, (a, b) in enumerate(zip(structures.offsets[:-1], structures.offsets[1:], strict=True)):
        arguments = (CONFIG, species[a:b], torch.from_numpy(structures.positions[a:b]))
        np.testing.assert_allclose(rows[a:b], aevs(*arguments), rtol=0, atol=VALUE_TOLERANCE)
        jacobian = flat[starts[m] : starts[m + 1]].reshape(b - a, CONFIG.length, b - a, 3)
        np.testing.assert_allclose(jacobian, aev_jacobians(*arguments), rtol=0, atol=JACOBIAN_TOLERANCE)


def test_aevmod_refuses_grids_that_it_cannot_compute():
    check_backend(CONFIG, "aevmod")
    for changed in ({"zeta": 14.1}, {"radial_prefactor": 0.25}, {"radial_shifts": (1.0, 2.0, 3.0, 4.0, 5.0)}):
        config = CONFIG.model_copy(update=changed)
        with pytest.raises(ConfigError, match=rf"aevmod computes only .* got others \({next(iter(changed))}\)"):
            check_backend(config, "aevmod")
        check_backend(config, "native")

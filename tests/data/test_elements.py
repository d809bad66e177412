"""Elements, species indices and compositions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pykinml_func.data.elements import composition, formula_of_each, formulas, ordered_elements, species_of
from pykinml_func.errors import DataError
from pykinml_func.types import Structures

Structured = Callable[..., Structures]


def test_carbon_comes_first_then_the_alphabet():
    assert ordered_elements(["O", "H", "N", "C", "H"]) == ("C", "H", "N", "O")
    assert ordered_elements(["O", "H"]) == ("H", "O")


def test_species_are_indices_into_the_elements(make_structures: Structured):
    structures = make_structures(["CH3OH", "H2O"])
    species = species_of(("O", "C", "H"), structures)
    assert species.tolist() == [1, 2, 2, 2, 0, 2, 2, 2, 0]
    np.testing.assert_array_equal(composition(species, structures.offsets, 4), [[1, 1, 4, 0], [1, 0, 2, 0]])


def test_atoms_of_other_elements_are_named(make_structures: Structured):
    with pytest.raises(DataError, match=r"of the elements C, H, got N, O \(first in CO/1\)"):
        species_of(("C", "H"), make_structures(["CH4", "CO", "NO"]))


def test_formulas_are_counted(make_structures: Structured):
    structures = make_structures(["CH3OH", "H2O", "CH4O"])
    assert formulas(structures) == {"CH4O": 2, "H2O": 1}
    assert formula_of_each(structures).tolist() == ["CH4O", "H2O", "CH4O"]

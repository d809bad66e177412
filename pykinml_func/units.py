"""Units: eV and Å everywhere inside; kcal/mol only in what people read."""

from ase.units import kcal, mol

KCAL_PER_MOL: float = mol / kcal
"""kcal/mol in one eV (23.06...); multiplies eV/Å into kcal/mol/Å as well."""

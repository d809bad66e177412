"""`pykinml frequencies`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pykinml_func.commands.checks import check_own_output
from pykinml_func.errors import ConfigError


def frequencies(  # noqa: PLR0913, PLR0917 (an option each)
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL...", help="A model.safetensors of `pykinml train`, or several; of all members, the mean."
        ),
    ],
    structures: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Structures: a file that train reads, or any that ASE reads.")
    ],
    relax: Annotated[bool, typer.Option("--relax", help="Go downhill to a minimum first.")] = False,
    low_level: Annotated[
        Path | None,
        typer.Option(help="For a model of delta learning, the model file that it is added to.", metavar="MODEL"),
    ] = None,
    temperature: Annotated[float, typer.Option(help="K, of enthalpy and Gibbs energy.")] = 298.15,
    pressure: Annotated[float, typer.Option(help="Pa, of the Gibbs energy.")] = 101325.0,
    symmetry: Annotated[int, typer.Option(help="Symmetry number: 2 for H2O, 12 for CH4.")] = 1,
    spin: Annotated[float, typer.Option(help="Half the number of unpaired electrons.")] = 0.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the modes as .xyz, .extxyz, .molden or .json (of ASE).")
    ] = None,
) -> None:
    """Wavenumbers, zero-point energy, enthalpy and Gibbs energy of structures, with the spread of an ensemble.

    Second derivatives are exact. Energies are those of an ideal gas of rigid rotors and harmonic vibrations. Spreads
    are standard deviations over MODEL's members, as they are: a calibration is of energies and forces. Example: pykinml
    frequencies model.safetensors h2o.xyz --relax --symmetry 2 -o modes.xyz
    """
    from pykinml_func.data.formats.sources import read_structures
    from pykinml_func.inference.calculator import ensemble_of
    from pykinml_func.inference.mode_files import check_mode_file, write_modes
    from pykinml_func.inference.thermochemistry import Conditions, check_conditions, thermochemistry, why_not
    from pykinml_func.inference.vibrations import vibrations
    from pykinml_func.report.frequencies import print_frequencies

    conditions = Conditions(temperature, pressure, symmetry, spin)
    check_conditions(conditions)
    if output is not None:
        check_mode_file(output)
        check_own_output(output, *models, structures, *([low_level] if low_level else []))
    ensemble, images = ensemble_of(models), read_structures([structures])
    low = None if low_level is None else ensemble_of(low_level)
    if output is not None and len(images) > 1:
        raise ConfigError(
            f"output takes the modes of one structure, got {len(images)} in {structures}; give a file of one"
        )
    for image in images:
        found = vibrations(ensemble, image, relax=relax, low_level=low)
        gas = None if why_not(found) else thermochemistry(found, conditions)
        if output is not None:
            write_modes(output, found)
        print_frequencies(found, gas, conditions, output)

"""Delta learning: train to the difference of wB97X/6-31G(d) and GFN1-xTB, predict by adding the low level.

    python examples/04_delta.py [EPOCHS] [OUTPUT]

Here the low level's energies and forces come from the databases; at run time they would come from an ASE calculator:
`PyKinMLCalculator(model, low_level=TBLite(method="GFN1-xTB"))`.
"""

import sys
from pathlib import Path

import numpy as np
from ase.units import kcal, mol

from pykinml_func import DataConfig, Predictor, RunConfig, TrainConfig, fit, read_structures
from pykinml_func.report.console import ConsoleReporter

DATABASES = Path(__file__).parent / "data" / "*.db"


def main(epochs: int, output: Path) -> None:
    """Train on the structures that have both levels, then predict the high level of methane from the low one."""
    config = RunConfig(
        data=DataConfig(input=(str(DATABASES),), fidelity=1, low_fidelity=(0,), delta=True, skip_incomplete=True),
        training=TrainConfig(epochs=epochs, batch_size=20, learning_rate=3e-3, forces=True, output=output),
    )
    result = fit(config, ConsoleReporter(), overwrite=True)
    print(f"test MAE: {result.errors['test']['energy_mae']:.2f} kcal/mol")

    predictor = Predictor.load(output / "model.safetensors")
    low, high = (read_structures([DATABASES.parent / "CH4.db"], level=level) for level in (0, 1))
    known = {image.info["id"]: image.get_potential_energy() for image in high}
    both = [image for image in low if image.info["id"] in known]
    predictions = predictor.predict(both, low_level="attached")
    errors = [found.energy - known[image.info["id"]] for found, image in zip(predictions, both, strict=True)]
    print(f"CH4, {len(errors)} structures: MAE {np.abs(errors).mean() * mol / kcal:.2f} kcal/mol")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        epochs=int(arguments[0]) if arguments else 100,
        output=Path(arguments[1]) if len(arguments) > 1 else Path("runs/delta"),
    )

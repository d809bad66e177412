"""Train a potential to energies and forces on the bundled data, through the Python API.

    python examples/01_train.py [EPOCHS] [OUTPUT]

It does what `pykinml train examples/quickstart.toml` does. Every setting is a field of a frozen config.
"""

import sys
from pathlib import Path

from pykinml_func import DataConfig, ModelConfig, RunConfig, TrainConfig, fit
from pykinml_func.report.console import ConsoleReporter

DATABASES = Path(__file__).parent / "data" / "*.db"


def main(epochs: int, output: Path) -> None:
    """Train, print the errors, and show where the model is."""
    config = RunConfig(
        data=DataConfig(input=(str(DATABASES),), fidelity=1, split=(0.8, 0.1, 0.1)),
        model=ModelConfig(neurons=(48, 24, 12, 1), activations=("gaussian", "gaussian", "gaussian", "identity")),
        training=TrainConfig(
            epochs=epochs,
            batch_size=20,
            learning_rate=3e-3,
            patience=15,
            forces=True,
            force_weight=0.3,
            output=output,
        ),
    )
    result = fit(config, ConsoleReporter(), overwrite=True)
    print(f"test MAE: {result.errors['test']['energy_mae']:.2f} kcal/mol")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        epochs=int(arguments[0]) if arguments else 200,
        output=Path(arguments[1]) if len(arguments) > 1 else Path("runs/quickstart"),
    )

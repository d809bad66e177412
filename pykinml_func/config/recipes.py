"""Recipes: the values of training settings that stand in where none is given."""

from __future__ import annotations

from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    "standard": {},
    "fast": {
        "epochs": 100,
        "batch_size": 50,
        "optimizer": "soap",
        "learning_rate": 2e-2,
        "schedule": "cosine",
        "warmup": 1,
        "ema": 0.99,
        "forces": True,
        "force_weight": 0.1,
        "force_weight_end": 0.003,
    },
}
"""`standard` is the defaults of `TrainConfig` themselves. `fast` was chosen on C5H5 by validation errors."""

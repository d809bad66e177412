"""PyKinML's training for `bench.accuracy`: a line [seconds, validation RMSE, test MAE] an epoch, errors in kcal/mol."""

from __future__ import annotations

import io
import re
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from pykinml import prepper, trainer

from bench.peers.protocol import timed
from bench.peers.pykinml_worker import SETTINGS, arguments_of
from bench.peers.stand_ins.torch_changes import undo

DEFAULT_BATCH = 10
"""of its parser"""


class Recorder(trainer.Trainer):  # type: ignore[misc]
    """Its trainer, whose reports of each pass become lines."""

    testing = 0.0
    """s, in all passes over the test set, which are not counted"""
    valid = (0.0, 0.0)
    """seconds and RMSE after the last validation"""

    def _run_epoch(self, *args: Any, tvs: str) -> None:
        with redirect_stdout(io.StringIO()) as told:
            took = timed(lambda: super(Recorder, self)._run_epoch(*args, tvs=tvs))
        errors = {name: float(value) for name, value in re.findall(r"(MAE|RMSE): +(\S+)", told.getvalue())}
        now = time.time() - SETTINGS["started"] - Recorder.testing
        if tvs == "valid":
            Recorder.valid = (now, errors["RMSE"])
        elif tvs == "test":
            Recorder.testing += took
            print([*Recorder.valid, errors["MAE"]], file=sys.__stdout__, flush=True)
            if now > SETTINGS["limit"]:
                raise SystemExit


if __name__ == "__main__":
    undo()
    torch.set_num_threads(SETTINGS["threads"])
    torch.set_default_dtype(torch.float64)
    folder = Path(SETTINGS["scratch"]) / "pykinml_accuracy"
    folder.mkdir()
    arguments = arguments_of(folder, forces=False, epochs=10**6)
    arguments.tr_batch_size = arguments.vl_batch_size = arguments.ts_batch_size = DEFAULT_BATCH
    trainer.Trainer = Recorder
    with redirect_stdout(io.StringIO()):
        prepper.prep_data(arguments, fid=1)
        trainer.spawned_trainer("cpu", arguments, 0)

"""A run of several stages that can be stopped at any moment: finished stages are remembered, a training goes on from its last pass.

It adds to chapter 5's checkpoints the record of what came before them. Whatever is written replaces the old file in one step, so
a run that is cut off anywhere finds a whole file when the same command starts again.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn as nn
from previous_chapters import TrainingState, read_checkpoint, restore_checkpoint, save_checkpoint
from tqdm import tqdm

RECORD = "story-so-far.json"


class RunFolder:
    """The folder of a run. Its record holds the settings, and of each stage the seconds spent and, once it is finished, the result.

    Raises ValueError in one line for a folder that holds other things, a damaged record, or one begun with other settings;
    overwrite=True starts again instead, and leaves alone what it does not replace.
    """

    def __init__(self, folder: str | Path, settings: dict, overwrite: bool = False):
        self.folder, self.settings = Path(folder), settings
        self.seconds, self.results, self.started = {}, {}, time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for old in [self.folder / RECORD, *self.folder.glob("*.checkpoint.pth")]:
                old.unlink(missing_ok=True)
        elif (self.folder / RECORD).exists():
            self.read()
        elif any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} holds other files: name another folder, or add --overwrite (with make: FRESH=1)")
        for half_written in self.folder.rglob("*.tmp"):
            half_written.unlink()
        self.write()

    def read(self) -> None:
        """Take up the record of an earlier start."""
        path, new = self.folder / RECORD, "name another folder, or add --overwrite (with make: FRESH=1)"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            begun, self.seconds, self.results = dict(record["settings"]), dict(record["seconds"]), dict(record["results"])
        except (ValueError, LookupError, TypeError):
            raise ValueError(f"{path} is damaged: {new}") from None
        differing = [f"{key} {begun.get(key)}, not {value}" for key, value in self.settings.items() if begun.get(key) != value]
        if differing:
            raise ValueError(f"{self.folder} was begun with {', '.join(differing)}: {new}")

    def write(self) -> None:
        """Write the record to a temporary file, then rename it."""
        record = {"settings": self.settings, "seconds": self.seconds, "results": self.results}
        temporary = self.folder / (RECORD + ".tmp")
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, self.folder / RECORD)

    def count_time(self, stage: str) -> None:
        """Add the time since the last call to the seconds of a stage."""
        now = time.monotonic()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.started
        self.started = now

    def do(self, stage: str, work: Callable[[], dict]) -> dict:
        """Return the result of a stage: remembered if it was finished before, else what `work()` returns, which is then remembered."""
        if stage not in self.results:
            self.started = time.monotonic()
            result = work()
            self.count_time(stage)
            self.results[stage] = result
            self.write()
            self.checkpoint(stage).unlink(missing_ok=True)
        return self.results[stage]

    def checkpoint(self, stage: str) -> Path:
        return self.folder / f"{stage}.checkpoint.pth"

    def train(
        self,
        stage: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        num_passes: int,
        updates: int,
        one_pass: Callable,
        enough: Callable = lambda state: False,
    ) -> TrainingState:
        """Call one_pass(state, after_step) until num_passes are done or enough(state) is true; returns where the training stands.

        one_pass trains on all the data once, calls after_step at each of its `updates` updates, counts up state.epoch, and
        returns a line to print. What the chapters' loops print goes to STAGE.log.
        """
        state = TrainingState()
        if self.checkpoint(stage).exists():
            state = restore_checkpoint(read_checkpoint(self.checkpoint(stage), self.settings), model, optimizer)
            print(f"goes on after pass {state.epoch}")
        bar = tqdm(total=num_passes * updates, initial=state.epoch * updates, unit="updates", mininterval=1, leave=False)

        def after_step(*_) -> None:
            bar.update()

        with bar:
            while state.epoch < num_passes and not enough(state):
                with open(self.folder / f"{stage}.log", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
                    line = one_pass(state, after_step)
                save_checkpoint(self.checkpoint(stage), model, optimizer, state, self.settings)
                self.count_time(stage)
                self.write()
                tqdm.write(f"  pass {state.epoch:2}: {line}")
        return state

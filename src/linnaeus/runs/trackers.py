"""The experiment trackers: programs that keep and plot the metrics of many runs."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from linnaeus.recipe.difference import differences

PROJECT = "linnaeus"
"""The experiment or project that runs are filed under, unless MLFLOW_EXPERIMENT_NAME names another one."""
LONGEST_VALUE = 500  # characters of a parameter that every release of MLflow accepts
MOST_PARAMETERS = 100  # parameters in one request to MLflow


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told about a run when it begins or is resumed."""

    path: Path  # the run folder
    parameters: Mapping[str, Any]  # recipe keys, as `--set` names them, and their values
    resumed: int | None = None  # epochs after which an interrupted run continues; None for a new run
    # How the tracker named this run before it was interrupted; None if it did not know it.
    identifier: str | None = None


class Tracker(Protocol):
    """One run in one tracker. Its methods may raise any exception."""

    @property
    def identifier(self) -> str | None:
        """By which a resumed run is found again; None if the run folder suffices."""

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Record values by name after `step` epochs. Values that a resumed run computes again are the same."""

    def close(self, status: str) -> None:
        """End the run with one of the states of MLflow: FINISHED, FAILED or KILLED."""


class TensorBoard:
    """Writes events to the folder `tensorboard` of the run folder."""

    identifier = None

    def __init__(self, run: TrackedRun):
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides the events of epochs that an interrupted run wrote after its last checkpoint.
        self.writer = SummaryWriter(
            str(run.path / "tensorboard"), purge_step=None if run.resumed is None else run.resumed + 1
        )

    def add(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self, status: str) -> None:
        self.writer.close()


class MLflow:
    """Sends metrics to where MLFLOW_TRACKING_URI points, or else to MLflow's default, a database in this folder."""

    def __init__(self, run: TrackedRun):
        # MLflow waits several minutes for a server that does not answer, during which nothing would be trained.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient

        self.client = MlflowClient()
        self.identifier = run.identifier or self._create(run)
        self.recorded = 0  # epochs that the interrupted run sent after its last checkpoint are not sent again
        if run.identifier:
            self.client.update_run(run.identifier, status="RUNNING")
            history = self.client.get_metric_history(run.identifier, "train/loss")
            self.recorded = max((metric.step for metric in history), default=0)

    def _create(self, run: TrackedRun) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = self.client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self.client.create_experiment(name)
        tags = {"linnaeus.run": str(run.path.resolve())}
        identifier = self.client.create_run(number, run_name=run.path.name, tags=tags).info.run_id
        parameters = [Param(key, str(value)[:LONGEST_VALUE]) for key, value in run.parameters.items()]
        for start in range(0, len(parameters), MOST_PARAMETERS):
            self.client.log_batch(identifier, params=parameters[start : start + MOST_PARAMETERS])
        return identifier

    def add(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        if step > self.recorded or "lr" not in values:
            now = round(time.time() * 1000)
            metrics = [Metric(name, value, now, step) for name, value in values.items()]
            self.client.log_batch(self.identifier, metrics=metrics)

    def close(self, status: str) -> None:
        self.client.set_terminated(self.identifier, status=status)


class Trackio:
    """Writes to Trackio's folder, or sends to the server or Space of TRACKIO_SERVER_URL or TRACKIO_SPACE_ID."""

    def __init__(self, run: TrackedRun):
        import trackio

        self.trackio = trackio
        # Trackio finds a run by its name, and several run folders may have the same one.
        self.identifier = run.identifier or f"{run.path.name}-{uuid4().hex[:8]}"
        with redirect_stdout(io.StringIO()):  # it prints an introduction
            self.run = trackio.init(
                PROJECT,
                self.identifier,
                config=dict(run.parameters),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def add(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self, status: str) -> None:
        with redirect_stdout(io.StringIO()):
            self.trackio.finish()


OPENERS: Mapping[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def parameters(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a recipe with dots, as `--set` takes them: {"phase.1.lr": 0.001}. Lists of values become JSON."""
    flat = {key: value for key, (value, _) in differences([recipe, {}], expand=True).items() if value != {}}
    return {key: json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for key, v in flat.items()}

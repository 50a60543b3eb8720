"""Open a trained model for inference: from the artifact of a student or a teacher, or from a file of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tasks
from pipeline.errors import DataError
from pipeline.models.weights import find_weights, network_settings_file, read_network_settings
from pipeline.steps.artifact import Artifact, read_json
from pipeline.steps.runtime import Runtime
from pipeline.stores.labels import Label
from tasks.inference.model import TrainedModel
from tasks.network import Network
from tasks.prediction import Predictor, load_network, network_predictor
from tasks.teacher import FILE as TEACHER_FILE
from tasks.teacher import Teacher, load_teacher

STUDENT = "student"


def open_model(artifact: Artifact, runtime: Runtime) -> TrainedModel:
    """Open the model of a student's or a teacher's artifact on the device and in the precision that are fastest."""
    if artifact.kind == STUDENT:
        predictor = load_network(artifact, runtime)
        return TrainedModel(STUDENT, predictor, _uncalibrated(predictor), runtime)
    predictor, teacher = load_teacher(artifact, runtime), Teacher.load(artifact)
    return TrainedModel(artifact.section[-1], predictor, dict.fromkeys(predictor.heads, teacher.label), runtime)


def open_model_file(weights: str, runtime: Runtime) -> TrainedModel:
    """Open a network that was trained here: a file of weights with its `model.json` beside it.

    Scores are calibrated if the `teacher.json` of a teacher lies beside it as well. Raises ConfigError if there is no
    such file or it is another's, DataError if it is damaged.
    """
    file = find_weights(weights)
    settings = read_network_settings(file)
    predictor = network_predictor(_load_network(file, settings)).setup(runtime, settings)
    labels = _uncalibrated(predictor)
    teacher_file = file.with_name(TEACHER_FILE)
    if teacher_file.is_file() and len(labels) == 1:
        calibration = Teacher.from_json(read_json(teacher_file)).calibration
        labels = {head: tasks.label(label.space, calibration) for head, label in labels.items()}
    return TrainedModel(str(file), predictor, labels, runtime)


def _uncalibrated(predictor: Predictor) -> dict[str, Label]:
    return {head: tasks.label(task.space) for head, task in predictor.heads.items()}


def _load_network(file: Path, settings: dict[str, Any]) -> Network:
    try:
        return Network.load_file(file, settings)
    except RuntimeError as error:
        raise DataError(f"{file}: its weights do not fit the {network_settings_file(file).name} beside it.") from error

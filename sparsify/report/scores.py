"""The figure by which a trained network is judged, in words."""

from collections.abc import Mapping
from typing import Any

from sparsify.training.evaluate import ACCURACY, score_name


def format_score(name: str, value: float) -> str:
    """97.10% for an accuracy, 1.923 for bits per character."""
    return f"{value:.2%}" if name == ACCURACY else f"{value:.3f}"


def score_in_words(line: Mapping[str, Any]) -> str:
    """ "accuracy 97.10%" or "bits per character 1.923", from a line of metrics with an evaluation."""
    name = score_name(line)
    return f"{plain_name(name)} {format_score(name, line[name])}"


def plain_name(name: str) -> str:
    """A score's name without underscores: "accuracy", "bits per character"."""
    return name.removeprefix("test_").replace("_", " ")

"""Operations that the engine lacks are run by onnxruntime."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsify.errors import EngineError

Array = np.ndarray[Any, Any]
FATAL = 4  # onnxruntime's log level: what goes wrong is raised, so nothing needs printing


if TYPE_CHECKING:
    import onnxruntime


@functools.lru_cache(maxsize=256)
def foreign_session(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    """An onnxruntime session for a model made by the front. Raises EngineError where onnxruntime refuses."""
    import onnxruntime  # few models need it, and it takes 20 MB and as long to load as all the rest

    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise EngineError(
            f"A part of the model that the engine leaves to onnxruntime was refused by it: "
            f"{first_line(error)} Probably the model is not valid, or needs a newer onnxruntime."
        ) from error


def run_foreign(model: bytes, operands: Sequence[Array], threads: int = 1) -> list[Array]:
    """Outputs of a Foreign operation's model. float64 operands, the oracle's, are handed over as float32."""
    session = foreign_session(model, threads)
    given = [a.astype(np.float32) if a.dtype == np.float64 else np.asarray(a) for a in operands]
    feeds = dict(zip((i.name for i in session.get_inputs()), given, strict=True))
    try:
        return list(session.run(None, feeds))
    except Exception as error:
        raise EngineError(
            f"onnxruntime failed in a part of the model that the engine leaves to it: {first_line(error)} "
            f"Probably an input holds values that the model does not allow."
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an exception's message, as a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300].rstrip(".") + "."

"""The ONNX project's own tests of its operators, for every operator that the front can import.

Each case runs as it is given, where all operands are inputs, and with all but the first made constants, as in
a model with weights.
"""

import copy
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from sparsify.engine import InferenceSession
from sparsify.engine.front.fallback import RANDOM
from sparsify.engine.front.reading import OLDEST_OPSET, PORT_DTYPES
from sparsify.engine.front.registry import importers
from sparsify.errors import EngineError


def array(value):
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def is_in_scope(case) -> bool:
    """Deterministic, of types that numpy can hold, and of an opset that the front reads."""
    graph = case.model.graph
    operators = {node.op_type for node in graph.node}
    if not operators & importers().keys() or operators & set(RANDOM) or "training" in case.name:
        return False
    if case.name.startswith("test_affine_grid_2d") and case.name.endswith("expanded"):
        return False  # its Range is given arrays of one element, against the standard
    if any(o.version < OLDEST_OPSET for o in case.model.opset_import if o.domain == ""):
        return False
    types = [value.type for value in (*graph.input, *graph.output)]
    if any(t.WhichOneof("value") != "tensor_type" for t in types):
        return False
    return all(str(onnx.helper.tensor_dtype_to_np_dtype(t.tensor_type.elem_type)) in PORT_DTYPES for t in types)


def with_constants(case):
    """The case with all inputs but the first made initializers."""
    new = copy.copy(case)
    new.model = onnx.ModelProto()
    new.model.CopyFrom(case.model)
    graph = new.model.graph
    inputs, outputs = case.data_sets[0]
    for value, data in list(zip(graph.input, inputs, strict=False))[1:]:
        graph.initializer.append(numpy_helper.from_array(array(data), value.name))
    del graph.input[1:]
    new.data_sets = [(inputs[:1], outputs)]
    return new


def all_cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # making some expected results overflows on purpose
        return load_model_tests(kind="node")


CASES = [case for case in all_cases() if is_in_scope(case)]
FEW = {"bf16", "bfloat16"}  # 8 bits of precision, which the engine computes in float32


def check(case):
    model = case.model.SerializeToString()
    try:
        session = InferenceSession(model)
        names = [i.name for i in session.get_inputs()]
        for inputs, outputs in case.data_sets:
            got = session.run(None, dict(zip(names, map(array, inputs), strict=False)))
            for ours, theirs in zip(got, map(array, outputs), strict=True):
                compare(case, ours, theirs)
    except EngineError as error:
        assert "onnxruntime" in str(error)  # left to it, and it cannot do it either
        with pytest.raises(Exception, match="ONNXRuntimeError"):
            quiet = onnxruntime.SessionOptions()
            quiet.log_severity_level = 4
            onnxruntime.InferenceSession(model, quiet).run(
                None, {name: array(a) for name, a in zip(names, case.data_sets[0][0], strict=True)}
            )


def compare(case, ours, theirs):
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    if theirs.dtype.kind in "fV":
        rough = any(name in case.name.lower() for name in FEW)
        rtol, atol = (2e-2, 1e-2) if rough else (1e-3, 1e-5)
        np.testing.assert_allclose(ours.astype(float), theirs.astype(float), rtol, atol)
    else:
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_as_given(case):
    check(case)


@pytest.mark.parametrize("case", [c for c in CASES if len(c.model.graph.input) > 1], ids=lambda case: case.name)
def test_with_constant_operands(case):
    check(with_constants(case))


def test_every_operator_has_cases():
    covered = {node.op_type for case in CASES for node in case.model.graph.node}
    known = {name for name in importers() if onnx.defs.has(name)}
    assert known - covered <= {"CastLike"}
    assert len(known) > 80

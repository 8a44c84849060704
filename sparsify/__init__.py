"""sparsify: train networks sparse from scratch, export them, and measure what sparsity buys.

    import sparsify

    result = sparsify.train("lenet-300-100-digits")
    sparsify.export(result.folder, out="digits.onnx")
    report = sparsify.benchmark(["digits.onnx"])

Names are imported when they are used, so that deploying a model needs no trainer.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsify.bench.benchmark import benchmark as benchmark
    from sparsify.bench.comparison import Comparison as Comparison
    from sparsify.bench.comparison import compare as compare
    from sparsify.bench.results import Report as Report
    from sparsify.errors import SparsifyError as SparsifyError
    from sparsify.formats import SparseModel as SparseModel
    from sparsify.hub import export_folder as export_folder
    from sparsify.interpolation import Landscape as Landscape
    from sparsify.interpolation import landscape as landscape
    from sparsify.recipe import Recipe as Recipe
    from sparsify.recipe import load_recipe as load_recipe
    from sparsify.report.inspection import Inspection as Inspection
    from sparsify.report.inspection import inspect as inspect
    from sparsify.report.plots import plot_inspection as plot_inspection
    from sparsify.report.plots import plot_landscape as plot_landscape
    from sparsify.sources import export as export
    from sparsify.sources import open_source as open_source
    from sparsify.training.loop import train as train
    from sparsify.training.loop import training as training
    from sparsify.training.own_loop import SparseOptimizer as SparseOptimizer

__version__ = "0.1.0"

_HOME = {
    "Comparison": "bench.comparison",
    "Inspection": "report.inspection",
    "Landscape": "interpolation",
    "Recipe": "recipe",
    "Report": "bench.results",
    "SparseModel": "formats",
    "SparseOptimizer": "training.own_loop",
    "SparsifyError": "errors",
    "benchmark": "bench.benchmark",
    "compare": "bench.comparison",
    "export": "sources",
    "export_folder": "hub",
    "inspect": "report.inspection",
    "landscape": "interpolation",
    "load_recipe": "recipe",
    "open_source": "sources",
    "plot_inspection": "report.plots",
    "plot_landscape": "report.plots",
    "train": "training.loop",
    "training": "training.loop",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sparsify' has no attribute '{name}'")
    return getattr(importlib.import_module(f"sparsify.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

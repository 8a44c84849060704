"""A benchmark as comma-separated values: a line for each model in each runtime, sparse and dense."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path

from sparsify.bench.results import Measures, Report
from sparsify.files import write_bytes

PLACE = ("source", "runtime", "version", "sparsity", "batch", "threads", "file_bytes", "digest")
SCALARS = [field.name for field in dataclasses.fields(Measures) if not str(field.type).startswith("list")]
HEAD = [*PLACE, "model", "median_ms", "low_ms", "high_ms", "speed_up", "speed_up_low", "speed_up_high", *SCALARS]


def write_csv(report: Report, path: Path) -> None:
    """Write all rows; speed-ups are over the dense twin in the same runtime. Raises DiskError."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEAD)
    for row in report.rows:
        place = [getattr(row, name) for name in PLACE]
        ratio = row.speed_up
        for model, ms, measures in (("sparse", row.sparse_ms, row.sparse), ("dense", row.dense_ms, row.dense)):
            speed = (ratio.median, ratio.low, ratio.high) if model == "sparse" else (1, 1, 1)
            scalars = [getattr(measures, name) for name in SCALARS] if measures is not None else [""] * len(SCALARS)
            writer.writerow([*place, model, ms.median, ms.low, ms.high, *speed, *scalars])
    write_bytes(path, text.getvalue().encode())

"""What a session runs, as a table: the kernel of each operation, why, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from sparsify.engine.executable import Row

HEADINGS = (
    "operation",
    "layer",
    "kernel",
    "density",
    "GFLOP",
    "GFLOP/s",
    "predicted ms",
    "measured ms",
    "why",
)
WIDEST = 40  # characters of a layer's name


@dataclass(frozen=True)
class Explanation:
    """One row for each step of a run. `str()` makes the table; times are of the whole step, all threads."""

    rows: tuple[Row, ...]

    @property
    def foreign(self) -> tuple[str, ...]:
        """Operator types that are left to onnxruntime, each once."""
        names = [row.name.split(", ") for row in self.rows if row.operation == "Foreign"]
        return tuple(dict.fromkeys(name for group in names for name in group))

    def __str__(self) -> str:
        table = [HEADINGS, *(_cells(row) for row in self.rows), _total(self.rows)]
        widths = [max(len(line[i]) for line in table) for i in range(len(HEADINGS))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in table]
        left = f"\nLeft to onnxruntime: {', '.join(self.foreign)}." if self.foreign else ""
        return "\n".join(lines) + left


def _cells(row: Row) -> tuple[str, ...]:
    name = row.name if len(row.name) <= WIDEST else "…" + row.name[1 - WIDEST :]
    seconds = row.measured or row.predicted
    rate = f"{row.gflop / seconds:.1f}" if seconds and row.gflop else ""
    density = f"{row.density:.3f}" if row.gflop else ""
    gflop = f"{row.gflop:.4f}" if row.gflop else ""
    return (
        row.operation,
        name,
        row.kernel,
        density,
        gflop,
        rate,
        _ms(row.predicted),
        _ms(row.measured),
        row.why,
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}" if seconds else ""


def _total(rows: tuple[Row, ...]) -> tuple[str, ...]:
    gflop = sum(row.gflop for row in rows)
    predicted, measured = sum(row.predicted for row in rows), sum(row.measured for row in rows)
    rate = f"{gflop / measured:.1f}" if measured else ""
    return ("total", f"{len(rows)} steps", "", "", f"{gflop:.4f}", rate, _ms(predicted), _ms(measured), "")

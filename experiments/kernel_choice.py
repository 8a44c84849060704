"""What would the engine gain if it measured its kernels instead of predicting their time?

Compiles an ONNX model as the engine would and once for each kernel, wherever that kernel can take a layer, and times
every layer within the whole network. Prints the layers where another kernel than the chosen one was fastest, and what
choosing the fastest one everywhere would save of a run. A second compilation without any wish shows
what is noise.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import numpy as np

from sparsify.engine.compile import compile_program
from sparsify.engine.front import build, load
from sparsify.engine.library import kernel_files
from sparsify.engine.target import available_cores

Times = dict[str, dict[str, float]]  # layer -> kernel -> median seconds
LINEAR = ("Convolution", "Linear")


def measure(path: str, batch: int, threads: int, seconds: float, kernel: str) -> tuple[float, Times]:
    """The median time of a run, and of each linear layer, with `kernel` wherever it can be."""
    graph = load(path)
    shapes = {value.name: (batch, *(int(size) for size in value.shape[1:])) for value in graph.inputs}
    executable = compile_program(build(graph, shapes), threads, prefer=kernel)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes.values()]
    runs, layers = [], defaultdict(list)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(runs) < 5:
        begin = time.perf_counter()
        executable.run(inputs)
        runs.append(time.perf_counter() - begin)
        for row in executable.report():
            if row.operation in LINEAR:
                layers[row.name, row.kernel].append(row.measured)
    found: Times = defaultdict(dict)
    for (layer, name), times in layers.items():
        found[layer][name] = float(np.median(times))
    return float(np.median(runs)), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--without", nargs="*", default=["loop"], help="kernels that are hopeless, and slow")
    given = parser.parse_args()
    arguments = (given.model, given.batch, given.threads, given.seconds)
    total, chosen = measure(*arguments, "")
    _, again = measure(*arguments, "")
    fastest: Times = {layer: dict(times) for layer, times in chosen.items()}
    for kernel in sorted(set(kernel_files()) - set(given.without)):
        for layer, times in measure(*arguments, kernel)[1].items():
            if kernel in times and layer in fastest:  # not in a stage that does two layers
                fastest[layer][kernel] = min(times[kernel], fastest[layer].get(kernel, np.inf))
    noise = gain = 0.0
    for layer, times in chosen.items():
        ((name, mine),) = times.items()
        noise += abs(mine - again[layer].get(name, mine))
        best = min(fastest[layer], key=lambda kernel: fastest[layer][kernel])
        gain += mine - fastest[layer][best]
        if best != name:
            print(f"{layer}: {name} {mine * 1e6:.1f} us, {best} {fastest[layer][best] * 1e6:.1f} us")
    print(
        f"{given.model}, batch {given.batch}: {total * 1e3:.3f} ms a run; the fastest kernels would save "
        f"{gain / total:.1%} of it, the same kernels at another time {noise / total:.1%}"
    )


if __name__ == "__main__":
    main()

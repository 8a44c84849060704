"""The command line: `sparsify train | compare | inspect | export | bench`.

Every command is one call of the library, drawn for a person or printed as JSON. A SparsifyError is shown
without a traceback and ends with exit code 2; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 128 + signal.SIGINT


def main() -> None:
    """Entry point of the command `sparsify`."""
    try:
        _run()
    except SystemExit as end:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and isinstance(end.code, int | None):
            # A rank is done here. Left to shut down, Python meets gloo's threads, and now and then that aborts it.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code or 0)
        raise


def _run() -> None:
    from sparsify.cli import bench_command  # noqa: F401, it joins the others
    from sparsify.cli.commands import app
    from sparsify.errors import InterruptedTraining, SparsifyError

    try:
        app()
    except InterruptedTraining as error:
        from sparsify.training.distributed import speaks

        if speaks():  # all ranks stop at the same step, and one says so
            _say(str(error))
        sys.exit(INTERRUPTED)
    except SparsifyError as error:
        _say(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        _say("Stopped.")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _say(message: str) -> None:
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(message, markup=False)

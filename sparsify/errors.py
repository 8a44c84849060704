"""Every error that a user can cause or mend.

The message is a short paragraph: what happened, the likely cause, what to do. The command line shows it
without a traceback and ends with exit code 2; any other exception is a bug and keeps its traceback.
"""


class SparsifyError(Exception):
    """Base of all errors whose message alone should be enough to go on."""


class RecipeError(SparsifyError):
    """A recipe, an option or a combination of them makes no sense."""


class UnknownNameError(RecipeError):
    """A name that no file, key or parameter answers to."""


class SparsityError(RecipeError):
    """A sparsity that cannot be reached with the layers at hand."""


class DataError(SparsifyError):
    """A data set is missing, damaged or not what it claims to be."""


class CheckpointError(SparsifyError):
    """A run folder or checkpoint cannot be written, read or resumed."""


class DivergedError(SparsifyError):
    """Training produced a loss that is not a finite number."""


class DistributedError(SparsifyError):
    """The processes of a run lost touch, or no longer agree."""


class InterruptedTraining(SparsifyError):
    """Training was asked to stop (SIGINT, SIGTERM) and has saved its state."""


class FormatError(SparsifyError):
    """A model file is damaged, hostile, or of a form that cannot be handled."""


class EngineError(SparsifyError):
    """A model or an input that the sparse engine cannot run."""


class BenchError(SparsifyError):
    """A measurement that would not mean anything, such as one of a wrong result."""

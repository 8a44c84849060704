"""Any file as bytes: most of it to train on, and its end to test on."""

from pathlib import Path

from sparsify.data import DataInfo
from sparsify.data._numbered import NumberedData
from sparsify.data._text import Sequences, open_text, text_info


def info(path: str, size: int, test_bytes: int, length: int = 512) -> DataInfo:
    """Sequences of `length` bytes, of all but the last `test_bytes` of a file of `size` bytes."""
    if not length < test_bytes < size:
        raise ValueError(f"test_bytes = {test_bytes} must be more than length = {length} and less than size = {size}")
    return text_info(size - test_bytes, length)


def load(folder: Path, path: str, size: int, test_bytes: int, length: int = 512) -> NumberedData:
    """The file `path`, in the data folder if it is not absolute.

    size: its bytes, in the recipe so that a run's length is known without the file.
    """
    known, text = info(path, size, test_bytes, length), open_text(folder / path, size)
    return NumberedData(known, Sequences(text[:-test_bytes], length), Sequences(text[-test_bytes:], length))

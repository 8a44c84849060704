"""MNIST: 70,000 handwritten digits of 28 x 28 (LeCun, Cortes and Burges)."""

from pathlib import Path

from sparsify.data import DataInfo, Dataset
from sparsify.data._idx import load_idx

ADDRESS = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FILES = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
# Pixels are scaled to 0..1 and not centred, as in the paper's code: its learning rate of 0.2 is made for that.
INFO = DataInfo((1, 28, 28), classes=10, train_samples=60_000, mean=(0.0,), std=(255.0,))


def load(folder: Path) -> Dataset:
    """60,000 training and 10,000 test images from `mnist/` in the data folder."""
    return load_idx(folder / "mnist", ADDRESS, FILES, INFO)

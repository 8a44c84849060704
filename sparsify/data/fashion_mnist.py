"""Fashion-MNIST: 70,000 images of clothes of 28 x 28 (Xiao, Rasul and Vollgraf 2017)."""

from pathlib import Path

from sparsify.data import DataInfo, Dataset
from sparsify.data._idx import load_idx

ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FILES = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
INFO = DataInfo((1, 28, 28), classes=10, train_samples=60_000, mean=(72.94,), std=(90.02,))


def load(folder: Path) -> Dataset:
    """60,000 training and 10,000 test images from `fashion-mnist/` in the data folder."""
    return load_idx(folder / "fashion-mnist", ADDRESS, FILES, INFO)

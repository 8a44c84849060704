"""Optical recognition of handwritten digits (UCI): 1,797 images of 8 x 8 that ship with the package."""

from pathlib import Path

from sparsify.data import DataInfo, Dataset, Images
from sparsify.data._idx import read_images

FILES = Path(__file__).parent / "optical_digits"
INFO = DataInfo((1, 8, 8), classes=10, train_samples=1438, mean=(4.88,), std=(6.02,))


def load(folder: Path) -> Dataset:
    """Every fifth image is a test image: 1,438 for training, 359 for testing. Pixels run from 0 to 16."""
    images = read_images(FILES / "images-idx3-ubyte.gz", FILES / "labels-idx1-ubyte.gz", INFO.classes)
    is_test = (images.labels.new_tensor(range(len(images))) % 5) == 4
    train = Images(images.pixels[~is_test], images.labels[~is_test])
    test = Images(images.pixels[is_test], images.labels[is_test])
    return Dataset(INFO, train, test)

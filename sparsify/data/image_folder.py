"""Any images in folders, train/CLASS/ and val/CLASS/, read while training runs."""

from pathlib import Path

from sparsify.data import DataInfo
from sparsify.data._tree import ImageTree, open_tree
from sparsify.data.imagenet import INFO as IMAGENET
from sparsify.errors import DataError

CONTENTS = "one folder of images for each class"


def info(path: str, classes: int, samples: int, size: int = 224) -> DataInfo:
    """`samples` training images of `classes` classes, at size x size; colours are centred as ImageNet's."""
    if min(classes, samples, size) < 1:
        raise ValueError(f"classes = {classes}, samples = {samples} and size = {size} must be at least 1")
    return DataInfo((3, size, size), classes, samples, IMAGENET.mean, IMAGENET.std)


def load(folder: Path, path: str, classes: int, samples: int, size: int = 224) -> ImageTree:
    """`train` and `val` in the folder `path`, which is in the data folder if it is not absolute.

    classes, samples: what is in `train`, in the recipe so that the network and a run's length are known without it.
    Training images are cropped at random and mirrored, test images are central crops.
    """
    tree = open_tree(folder / path, info(path, classes, samples, size), "train", "val", CONTENTS)
    found = len(tree.train.classes), len(tree.train)
    if found != (classes, samples):
        raise DataError(
            f"{tree.train.folder} holds {found[1]:,} images in {found[0]} classes, and the recipe expects {samples:,} "
            f"in {classes}. Set data.samples={found[1]} and data.classes={found[0]}, or name another data.path."
        )
    return tree

"""ImageNet-2012: 1.28 million photographs of 1,000 classes (Russakovsky et al. 2015), read while training runs."""

from pathlib import Path

from sparsify.data import DataInfo
from sparsify.data._tree import ImageTree, open_tree

INFO = DataInfo(
    (3, 224, 224), classes=1000, train_samples=1_281_167, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)
)
CONTENTS = "one folder of JPEGs for each class, such as n01440764/, as the ILSVRC-2012 archives unpack to"


def load(folder: Path) -> ImageTree:
    """`imagenet/train` and `imagenet/val` in the data folder; it cannot be downloaded without an account.

    Training images are cropped at random and mirrored, test images are central crops.
    """
    return open_tree(folder / "imagenet", INFO, "train", "val", CONTENTS)

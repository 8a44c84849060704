"""Networks have as many parameters as their authors, or the reference implementations, say."""

import pytest

from sparsify.architectures import build
from sparsify.errors import RecipeError

# Sources: torchvision's documentation of its models (resnet*, mobilenet_v2), where each weight entry states
# num_params; Howard et al. 2017, table 8 (4.2 million) and Keras' MobileNet (4,253,864 with 21,888 moving
# statistics) for MobileNet v1; Evci et al.'s WRN-22-2 has 1,076,912 convolution and linear weights.
PUBLISHED = [
    ("resnet", {"depth": 18}, 11_689_512),
    ("resnet", {"depth": 34}, 21_797_672),
    ("resnet", {"depth": 50}, 25_557_032),
    ("resnet", {"depth": 101}, 44_549_160),
    ("resnet", {"depth": 152}, 60_192_808),
    ("mobilenet_v1", {}, 4_253_864 - 21_888),
    ("mobilenet_v2", {}, 3_504_872),
]


@pytest.mark.parametrize(("name", "options", "parameters"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(name, options, parameters):
    model = build(name, options, (3, 224, 224), 1000)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_widths_of_the_paper():
    """Big-sparse MobileNet v1 of width 1.98 at 75 % and small-dense of width 0.285 (Evci et al. 2020, 4.1.2)."""
    sizes = [
        sum(p.numel() for p in build("mobilenet_v1", {"width": width}, (3, 224, 224), 1000).parameters())
        for width in (0.285, 1.0, 1.98)
    ]
    assert sizes[0] < sizes[1] / 5 and sizes[2] > 3 * sizes[1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet", {"depth": 49}, "depth = 49 must be one of 18, 34, 50, 101, 152"),
        ("mobilenet_v1", {"width": 0.0}, "width = 0.0 leaves no channel"),
        ("mobilenet_v2", {"width": -1.0}, "width = -1.0 must be more than 0"),
        ("wide_resnet", {"depth": 23}, r"depth = 23 must be 6 n \+ 4"),
        ("lenet", {"hidden": []}, "must name at least one layer"),
    ],
)
def test_impossible_sizes_are_said(name, options, message):
    with pytest.raises(RecipeError, match=message):
        build(name, options, (3, 32, 32), 10)

"""Networks have as many parameters as their authors, or the reference implementations, say."""

import pytest
import torch

from sparsify.architectures import build
from sparsify.errors import RecipeError

# Sources: torchvision's documentation of its models (resnet*, mobilenet_v2, vgg*_bn, vit_b_16), where each weight entry
# states num_params; timm's results for the smaller ViTs (5.72 and 22.05 million); Howard et al. 2017, table 8 (4.2
# million) and Keras' MobileNet (4,253,864 with 21,888 moving statistics) for MobileNet v1; Evci et al.'s WRN-22-2 has
# 1,076,912 convolution and linear weights.
PUBLISHED = [
    ("resnet", {"depth": 18}, 11_689_512),
    ("resnet", {"depth": 34}, 21_797_672),
    ("resnet", {"depth": 50}, 25_557_032),
    ("resnet", {"depth": 101}, 44_549_160),
    ("resnet", {"depth": 152}, 60_192_808),
    ("mobilenet_v1", {}, 4_253_864 - 21_888),
    ("mobilenet_v2", {}, 3_504_872),
    ("vgg", {"depth": 11}, 132_868_840),
    ("vgg", {"depth": 13}, 133_053_736),
    ("vgg", {"depth": 16}, 138_365_992),
    ("vgg", {"depth": 19}, 143_678_248),
    ("vit", {}, 5_717_416),
    ("vit", {"width": 384, "heads": 6}, 22_050_664),
    ("vit", {"width": 768, "heads": 12}, 86_567_656),
]


@pytest.mark.parametrize(("name", "options", "parameters"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(name, options, parameters):
    with torch.device("meta"):
        model = build(name, options, (3, 224, 224), 1000)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(("tied", "parameters"), [(True, 124_439_808), (False, 124_439_808 + 50_257 * 768)])
def test_gpt_2_has_the_published_size(tied, parameters):
    """124,439,808 in the smallest GPT-2 as published (transformers' GPT2LMHeadModel), whose embedding is tied."""
    with torch.device("meta"):
        model = build("gpt", {"width": 768, "depth": 12, "heads": 12, "tied": tied}, (1024,), 50257, 50257)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_widths_of_the_paper():
    """Big-sparse MobileNet v1 of width 1.98 at 75 % and small-dense of width 0.285 (Evci et al. 2020, 4.1.2)."""
    sizes = [
        sum(p.numel() for p in build("mobilenet_v1", {"width_multiplier": width}, (3, 224, 224), 1000).parameters())
        for width in (0.285, 1.0, 1.98)
    ]
    assert sizes[0] < sizes[1] / 5 and sizes[2] > 3 * sizes[1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet", {"depth": 49}, "depth = 49 must be one of 18, 34, 50, 101, 152"),
        ("mobilenet_v1", {"width_multiplier": 0.0}, "width_multiplier = 0.0 must be positive"),
        ("mobilenet_v2", {"width_multiplier": -1.0}, "width_multiplier = -1.0 must be positive"),
        ("wide_resnet", {"depth": 23}, r"depth = 23 must be 6 n \+ 4"),
        ("lenet", {"hidden": []}, "must name at least one layer"),
        ("vgg", {"depth": 12}, "depth = 12 must be one of 11, 13, 16, 19"),
        ("vgg", {"dropout": 1.0}, "dropout = 1.0 must be below 1"),
        ("vit", {"patch": 5}, "patch = 5 a divisor of 32 and 32"),
        ("vit", {"heads": 5}, "width = 192 must be a multiple of heads = 5"),
    ],
)
def test_impossible_sizes_are_said(name, options, message):
    with pytest.raises(RecipeError, match=message):
        build(name, options, (3, 32, 32), 10)

"""What every file that we write says of itself, as one JSON string under the key "sparsify"."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparsify.errors import FormatError
from sparsify.registry import explain
from sparsify.topology.costs import Layer

KEY = "sparsify"

Share = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class LayerMetadata(_Record):
    """One convolution or linear layer."""

    shape: list[Size]  # [out, in / groups, kernel...], or [in, out / groups, kernel...] where axis is 1
    positions: Size  # how often a sample multiplies by each weight; 0 for embeddings
    sparse: bool  # takes part in the distribution
    axis: Annotated[int, Field(ge=0, le=1)] = 0  # dimension of the outputs
    groups: Annotated[int, Field(ge=1)] = 1  # of a convolution
    parts: Annotated[int, Field(ge=1)] = 1  # matrices along the outputs: gates; queries, keys and values
    own: Share | None = None  # sparsity of its own, where the distribution did not decide
    inside: bool = False  # whether the others made up for that
    nonzeros: Size  # connections, those whose weight is exactly 0 among them
    sparsity: Share

    def layer(self, name: str) -> Layer:
        """What is known of it besides its zeros."""
        return Layer(name, **{**self.model_dump(exclude={"nonzeros", "sparsity"}), "shape": tuple(self.shape)})


class Network(_Record):
    """What is needed to build the network again and to feed it."""

    recipe: dict[str, Any]
    input_shape: list[Size]  # [channels, height, width], or the [length] of the sequences in training
    classes: Size
    mean: list[float]  # of each channel, subtracted from the pixels
    std: list[float]  # of each channel, divided by afterwards
    vocabulary: Size = 0  # distinct tokens, where inputs are int64 sequences of any length; 0 for float32 inputs

    def sample(self, count: int, length: int | None = None, seed: int = 0) -> np.ndarray:
        """Random inputs [count, *input_shape] of the network's type. length: of sequences, if not that of training."""
        random = np.random.default_rng(seed)
        if self.vocabulary:
            return random.integers(0, self.vocabulary, (count, length or self.input_shape[0]))
        return random.standard_normal((count, *self.input_shape), dtype=np.float32)


class Metadata(_Record):
    """The whole record. The recipe in it names parts of this package, which are looked up, never imported."""

    version: Literal[1] = 1
    producer: str  # program and version
    origin: Literal["trained", "in training", "initialised", "densified"]
    network: Network
    method: str
    distribution: str
    target_sparsity: Share
    sparsity: Share  # of the layers that take part, together
    flops: Size  # of one sample's forward pass
    dense_flops: Size
    layers: dict[str, LayerMetadata]
    mask_digest: str
    live_zeros: dict[str, list[int]] = {}  # flat positions of connections whose weight is exactly 0
    uncut_shapes: dict[str, list[Size]] = {}  # of the weights from which --compact cut channels, as they were trained
    training: dict[str, Any] = {}  # steps, updates, test_loss, test_accuracy

    def densified(self, digest: str) -> Self:
        """The record of the dense twin."""
        layers = {
            name: layer.model_copy(update={"nonzeros": math.prod(layer.shape), "sparsity": 0.0})
            for name, layer in self.layers.items()
        }
        changes = {"layers": layers, "mask_digest": digest, "live_zeros": {}, "sparsity": 0.0}
        return self.model_copy(update={**changes, "origin": "densified", "flops": self.dense_flops})


def parse_metadata(text: str, path: object) -> Metadata:
    """Read the JSON string of a file. Raises FormatError that names the wrong entries."""
    try:
        return Metadata.model_validate_json(text)
    except ValidationError as error:
        raise FormatError(
            f"The metadata in {path} is not what sparsify writes:\n{explain(error)}\n"
            f"The file was changed, or comes from a newer release. Export it again."
        ) from None

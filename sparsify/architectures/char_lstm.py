"""A character-level LSTM."""

from torch import nn

from sparsify.architectures._recurrent import build_character_model


def build(
    input_shape: tuple[int],
    classes: int,
    vocabulary: int,
    embedding: int = 128,
    hidden: int = 512,
    readout: tuple[int, ...] = (256, 128),
    width_multiplier: float = 1.0,
) -> nn.Module:
    """Byte embedding, one layer of `hidden` LSTM units, and a read-out.

    readout: neurons of the linear layers between the LSTM and the logits. The sizes are those of the GRU of
    Evci et al. 2020, section 4.2.
    """
    return build_character_model("lstm", vocabulary, classes, embedding, hidden, readout, width_multiplier)

"""The image tokenizer's encoder in float32 with a third of the products, for use on a CPU.

Two changes that leave the map as it is: the projection of the nine channels is folded into the
first 7 x 7 convolution, and the wide layers at the coarsest scale are convolved by Winograd's
method. What rounding does differs, so about one code in ten thousand does (benchmarks/encoder.py).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from training.tokenizers.image import NUM_CHANNELS, ChannelsIn, ImageTokenizer
from training.tokenizers.winograd import WinogradConv2d, fits

MIN_CHANNELS = 512  # below, moving the tiles costs more than the products that are saved


def speed_up(tokenizer: ImageTokenizer) -> None:
    """Change the encoder of a frozen tokenizer in place; it can be neither trained nor saved then.

    Memory: the transformed weights of the released tokenizer take 510 MB instead of 126 MB.
    """
    first = tokenizer.encoder[0]
    assert isinstance(first, nn.Conv2d)
    tokenizer.encoder[0] = _folded(tokenizer.project_in, first)
    tokenizer.project_in = _Scaled()  # type: ignore[assignment]
    for parent in list(tokenizer.encoder.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d) and layer.in_channels >= MIN_CHANNELS and fits(layer):
                setattr(parent, name, WinogradConv2d(layer))


class _Scaled(nn.Module):
    """The nine channels as ChannelsIn weighs them, and its weight as a tenth, for the bias."""

    def forward(
        self, compressed: Float[Tensor, "b 9 y x"], channels: Bool[Tensor, "b 9"]
    ) -> Float[Tensor, "b 10 y x"]:
        scale = ChannelsIn.scale(channels)
        weighed = compressed * channels[:, :, None, None] * scale
        return torch.cat([weighed, scale.expand(-1, 1, *compressed.shape[2:])], dim=1)


@torch.no_grad()
def _folded(project: ChannelsIn, convolution: nn.Conv2d) -> nn.Conv2d:
    """One convolution for the projection and what follows it, computed in float64."""
    linear = project.linear
    assert linear.bias is not None
    columns = torch.cat([linear.weight[:, :, 0, 0], linear.bias[:, None]], dim=1).double()
    folded = nn.Conv2d(
        NUM_CHANNELS + 1,
        convolution.out_channels,
        convolution.kernel_size,  # type: ignore[arg-type]
        padding=convolution.padding,  # type: ignore[arg-type]
        device=columns.device,
    )
    folded.weight.copy_(torch.einsum("omyx,mc->ocyx", convolution.weight.double(), columns))
    assert folded.bias is not None
    assert convolution.bias is not None
    folded.bias.copy_(convolution.bias)
    return folded.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

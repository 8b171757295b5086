"""Convolutions of wide layers with fewer products: Winograd's minimal filtering (Cook-Toom).

A tile of m x m outputs of an r x r kernel takes (m + r - 1)^2 products instead of (m r)^2: with
m = 4, a quarter for 3 x 3, and for 7 x 7, taken as four kernels of 4 x 4, as well. Transforms of
small integers and halves: errors are about 1e-5 of the largest output nearby (512 channels, by
measurement), so pixels beside one ten thousand times as bright keep two digits; compressed images
hold no such. They pay where a layer has many channels and few pixels.

Source: Winograd 1980; Lavin and Gray 2015, arXiv 1509.09308.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy import ndarray
from torch import Tensor, nn
from torch.nn import functional

TILE = 4  # outputs a side of a tile
KERNELS = {3: 3, 7: 4}  # side of a kernel -> side of the kernels that it is taken apart into
POINTS = tuple(Fraction(*point) for point in ((0, 1), (1, 1), (-1, 1), (2, 1), (-2, 1), (1, 2)))


class WinogradConv2d(nn.Module):
    """The same map as a convolution of stride 1 that keeps the size; weights are not trainable."""

    weight: Tensor  # (point, part * channel in, channel out); a point is a place of the tile
    tile_to_points: Tensor
    points_to_tile: Tensor

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        side, padding = convolution.kernel_size[0], convolution.padding
        if not fits(convolution):
            raise ValueError(
                "expected a convolution of stride 1 with kernel 3 or 7 that keeps the size, got "
                f"stride {convolution.stride}, kernel {convolution.kernel_size}, padding {padding}"
            )
        part = KERNELS[side]
        self.margin = side // 2
        self.parts = -(-side // part)  # a side
        outputs, filters, inputs = (torch.from_numpy(m) for m in cook_toom(TILE, part))
        self.num_points = len(inputs)  # a side
        # What is added at the point (1, 1) is added to every output: all powers of 1 are 1.
        self.everywhere = POINTS.index(Fraction(1)) * (self.num_points + 1)
        full = self.parts * part
        kernel = convolution.weight.detach().double().cpu()
        kernel = functional.pad(kernel, (0, full - side, 0, full - side))
        kernel = kernel.reshape(*kernel.shape[:2], self.parts, part, self.parts, part)
        weight = torch.einsum("xi,yj,ocpiqj->xypqco", filters, filters, kernel)
        self.register_buffer("weight", weight.flatten(0, 1).flatten(1, 3).float().contiguous())
        self.register_buffer("tile_to_points", torch.kron(inputs, inputs).float())
        self.register_buffer("points_to_tile", torch.kron(outputs, outputs).float())
        self.bias = convolution.bias

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b out y x"]:
        """Convolve; the result lies in memory with channels last."""
        batch, channels, height, width = x.shape
        rows, columns = -(-height // TILE), -(-width // TILE)
        more = self.parts - 1  # tiles that the shifted parts of the kernel reach beyond
        far_y = (rows + more - 1) * TILE + self.num_points - height - self.margin
        far_x = (columns + more - 1) * TILE + self.num_points - width - self.margin
        pixels = functional.pad(x.movedim(1, -1), (0, 0, self.margin, far_x, self.margin, far_y))
        pixels = pixels.contiguous()
        along_b, along_y, along_x, along_c = pixels.stride()
        tiles = pixels.as_strided(
            (self.num_points, self.num_points, batch, rows + more, columns + more, channels),
            (along_y, along_x, along_b, TILE * along_y, TILE * along_x, along_c),
        )
        points = self.tile_to_points @ tiles.reshape(self.num_points**2, -1)
        points = points.view(-1, batch, rows + more, columns + more, channels)
        if more:
            shifted = [
                points[:, :, down : down + rows, right : right + columns]
                for down in range(self.parts)
                for right in range(self.parts)
            ]
            points = torch.cat(shifted, dim=-1)
        products = torch.bmm(points.flatten(1, 3), self.weight)
        if self.bias is not None:
            products[self.everywhere] += self.bias
        made = (self.points_to_tile @ products.flatten(1)).view(
            TILE, TILE, batch, rows, columns, self.weight.shape[-1]
        )
        image = made.permute(2, 3, 0, 4, 1, 5).reshape(
            batch, rows * TILE, columns * TILE, self.weight.shape[-1]
        )
        return image[:, :height, :width].movedim(-1, 1)


def fits(convolution: nn.Conv2d) -> bool:
    """Whether WinogradConv2d can stand for a convolution."""
    side = convolution.kernel_size[0]
    return (
        convolution.kernel_size == (side, side)
        and side in KERNELS
        and convolution.padding == (side // 2, side // 2)
        and convolution.stride == convolution.dilation == (1, 1)
        and convolution.groups == 1
        and convolution.padding_mode == "zeros"
    )


def cook_toom(
    num_outputs: int, num_taps: int
) -> tuple[
    Float64[ndarray, "output point"], Float64[ndarray, "point tap"], Float64[ndarray, "point input"]
]:
    """Matrices A, G, B with sum_k d[i + k] g[k] = (A ((G g) * (B d)))[i] for all d and g.

    The polynomials are evaluated at POINTS and at infinity.
    """
    finite = POINTS[: num_outputs + num_taps - 2]
    outputs = [[point**i for point in finite] + [i == num_outputs - 1] for i in range(num_outputs)]
    filters, inputs = [], []
    for point in finite:
        others = [other for other in finite if other != point]
        norm = Fraction(1)
        for other in others:
            norm *= point - other
        filters.append([point**k / norm for k in range(num_taps)])
        inputs.append([*_polynomial(others), Fraction(0)])
    filters.append([Fraction(k == num_taps - 1) for k in range(num_taps)])
    inputs.append(_polynomial(finite))
    return (
        np.array(outputs, dtype=np.float64),
        np.array(filters, dtype=np.float64),
        np.array(inputs, dtype=np.float64),
    )


def _polynomial(roots: tuple[Fraction, ...] | list[Fraction]) -> list[Fraction]:
    """Coefficients of the product of (x - root), lowest power first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        for power, value in enumerate(coefficients):
            shifted[power] -= root * value
        coefficients = shifted
    return coefficients

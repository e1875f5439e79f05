"""A vision transformer for MNIST (Dosovitskiy et al., An image is worth 16x16 words, 2020)."""

import torch
from torch import nn
from torch.nn import functional

from foveate_train.networks.digits import DIGITS, MNIST_INPUT
from foveate_train.registry import Blueprint, register

PATCH = 4
GRID = 7
WIDTH = 64
HEADS = 4
DEPTH = 4


class Attention(nn.Module):
    """Every token takes from every other what its query finds in their keys."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return [N, T, WIDTH]."""
        # Of the last axis first the queries of all heads, then the keys, then the values.
        split = self.qkv(tokens).unflatten(2, (3, HEADS, WIDTH // HEADS))
        queries, keys, values = split.permute(2, 0, 3, 1, 4).unbind()
        taken = functional.scaled_dot_product_attention(queries, keys, values)
        mixed: torch.Tensor = self.proj(taken.transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Attention among the tokens, then two linear layers for each; both are added to them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return [N, T, WIDTH]."""
        tokens = tokens + self.attn(self.norm1(tokens))
        result: torch.Tensor = tokens + self.mlp(self.norm2(tokens))
        return result


class ViTMNIST(nn.Module):
    """Patches of 4 x 4 pixels, four blocks, and a class token: 139,018 parameters.

    A linear layer makes a token of each of the 7 x 7 patches. A learned token for the
    class stands before them, and each gets a learned vector for its place. The head
    reads the class token; with `pool` there is none, and it reads the mean of the
    patches. Maps float32 [N, 1, 28, 28] to logits [N, 10].
    """

    def __init__(self, *, pool: bool) -> None:
        super().__init__()
        self.pool = pool
        self.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.cls_token = None if pool else nn.Parameter(torch.zeros(1, 1, WIDTH))
        count = GRID * GRID + (0 if pool else 1)
        self.positions = nn.Parameter(0.02 * torch.randn(1, count, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of normalised images."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], 1)
        tokens = self.norm(self.blocks(tokens + self.positions))
        logits: torch.Tensor = self.head(tokens.mean(1) if self.pool else tokens[:, 0])
        return logits


@register("vit_mnist")
def vit_mnist(*, pool: bool = False) -> Blueprint:
    """Build the vision transformer for MNIST; `pool=True` has no class token."""
    return Blueprint(ViTMNIST(pool=pool), MNIST_INPUT, DIGITS)

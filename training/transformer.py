"""The early-fusion encoder-decoder of AION-1: tokens of any modalities in, tokens of others out.

Every stream has its own token table, head, learned modality vector and fixed positions; all
streams share one encoder and one decoder. Tensor names are those of the released checkpoints, so
that the same code carries the small and the published sizes.

Source: arXiv 2510.17960 and the released package polymathic-aion 0.0.2 (4M-style masked modelling).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from training.blocks import DecoderBlock, EncoderBlock, LayerNorm
from training.transformer_config import Domain, TransformerConfig

INIT_STD = 0.02
# As large as the positions they are added to. The release draws tokens with INIT_STD; beside
# positions of amplitude 1 a brief training then learns where tokens are, never what they are.
TOKEN_STD = 1.0


@dataclass(frozen=True, slots=True)
class Layout:
    """All streams of a model side by side: a token is a (position, id) pair in one long line."""

    keys: tuple[str, ...]
    start: Mapping[str, int]  # key -> its first position
    num_tokens: Mapping[str, int]
    id_start: Mapping[str, int]  # key -> the id of its code 0
    total: int  # positions of all streams together

    @classmethod
    def of(cls, domains: Mapping[str, Domain]) -> Layout:
        start, id_start, position, identity = {}, {}, 0, 0
        for key, domain in domains.items():
            start[key], id_start[key] = position, identity
            position += domain.num_tokens
            identity += domain.vocabulary
        num_tokens = {key: domain.num_tokens for key, domain in domains.items()}
        return cls(tuple(domains), start, num_tokens, id_start, position)

    def stream_of_position(self) -> Int[Tensor, " position"]:
        """For every position the number of its stream in `keys`."""
        lengths = torch.tensor([self.num_tokens[key] for key in self.keys])
        return torch.repeat_interleave(
            torch.arange(len(self.keys)), lengths, output_size=self.total
        )

    def slice(self, key: str) -> slice:
        return slice(self.start[key], self.start[key] + self.num_tokens[key])


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the encoder made of some tokens."""

    outputs: Float[Tensor, "batch token dim"]
    positions: Int[Tensor, "batch token"]  # in the model's Layout
    valid: Bool[Tensor, "batch token"] | None  # False = padding; None = all valid


def sin_cos_positions(grid: tuple[int, int], dim: int) -> Float[Tensor, "1 token dim"]:
    """Fixed positions on a grid: [sin, cos] of the first axis, then of the second."""
    # The release builds the table for (h, w) with w as the slower axis; on the square grids of
    # images that is the row. Long streams are (n, 1) grids there, so their index is the last half.
    h, w = grid
    slow, fast = torch.meshgrid(torch.arange(w), torch.arange(h), indexing="ij")
    frequency = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = [axis.reshape(-1, 1) * frequency for axis in (slow, fast)]
    table = torch.cat([wave for a in angles for wave in (a.sin(), a.cos())], dim=1)
    return table.float()[None]


class StreamEmbedding(nn.Module):
    """Tables of one stream: tokens (encoder side), head (decoder side), modality and positions."""

    pos_emb: Tensor

    def __init__(
        self, domain: Domain, config: TransformerConfig, mod_emb: nn.Parameter, *, decoder: bool
    ) -> None:
        super().__init__()
        if not decoder or config.released_layout:
            self.token_emb = nn.Embedding(domain.vocabulary, config.dim)
        if decoder:
            self.to_logits = nn.Linear(config.dim, domain.vocabulary, bias=False)
        self.mod_emb = mod_emb
        self.register_buffer(
            "pos_emb",
            sin_cos_positions(domain.grid, config.dim),
            persistent=config.released_layout,
        )

    def place(self) -> Float[Tensor, "1 token dim"]:
        """What says which stream and where in it: added to every token."""
        return self.pos_emb + self.mod_emb


class Transformer(nn.Module):
    """The encoder-decoder; see `encode` for vectors and `pretraining` for how it is trained."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layout = Layout.of(config.domains_in)
        shared = {key: nn.Parameter(torch.empty(1, 1, config.dim)) for key in config.domains_in}
        self.encoder_embeddings = nn.ModuleDict(
            {
                key: StreamEmbedding(domain, config, shared[key], decoder=False)
                for key, domain in config.domains_in.items()
            }
        )
        self.decoder_embeddings = nn.ModuleDict(
            {
                key: StreamEmbedding(domain, config, shared[key], decoder=True)
                for key, domain in config.domains_in.items()
            }
        )
        sizes: dict[str, Any] = {"mlp_ratio": config.mlp_ratio, "qk_norm": config.qk_norm}
        self.encoder = nn.ModuleList(
            EncoderBlock(config.dim, config.num_heads, **sizes) for _ in range(config.encoder_depth)
        )
        self.encoder_norm = LayerNorm(config.dim)
        self.decoder_proj_context = nn.Linear(config.dim, config.dim)
        self.decoder = nn.ModuleList(
            DecoderBlock(config.dim, config.num_heads, **sizes) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = LayerNorm(config.dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.dim))
        self.register_buffer("stream_of_position", self.layout.stream_of_position(), False)
        self._initialise()

    stream_of_position: Tensor

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if "token_emb" in name:
                nn.init.normal_(parameter, std=TOKEN_STD)
            elif parameter.ndim == 2 and "to_logits" not in name:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)  # keeps the variance
            elif parameter.ndim > 1:
                nn.init.normal_(parameter, std=INIT_STD)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def encode(self, tokens: Mapping[str, Int[Tensor, "batch _"]]) -> Encoded:
        """Encode whole streams, the same ones for every object of the batch.

        Raises:
            ValueError: no tokens, an unknown stream, or a stream of another length.
        """
        if not tokens:
            raise ValueError("expected tokens of at least one stream, got none")
        parts, positions = [], []
        for key, codes in tokens.items():
            if key not in self.layout.start:
                known = ", ".join(self.layout.keys)
                raise ValueError(f"this encoder has no stream {key!r}, it has {known}")
            if codes.shape[1] != self.layout.num_tokens[key]:
                expected = self.layout.num_tokens[key]
                raise ValueError(f"{key} has {expected} tokens, got {codes.shape[1]}")
            embedding = self._stream(self.encoder_embeddings, key)
            parts.append(embedding.token_emb(codes) + embedding.place())
            span = self.layout.slice(key)
            positions.append(torch.arange(span.start, span.stop, device=codes.device))
        x = torch.cat(parts, dim=1)
        where = torch.cat(positions).expand(x.shape[0], -1)
        return Encoded(self._run_encoder(x, None), where, None)

    def encode_selected(
        self,
        ids: Int[Tensor, "batch token"],
        positions: Int[Tensor, "batch token"],
        valid: Bool[Tensor, "batch token"],
    ) -> Encoded:
        """Encode tokens picked from any streams: layout ids at layout positions, padded rows."""
        tables = [
            self._stream(self.encoder_embeddings, key).token_emb.weight for key in self.layout.keys
        ]
        x = F.embedding(ids, torch.cat(tables)) + self._places(positions)
        x = x * valid[..., None]
        return Encoded(self._run_encoder(x, valid), positions, valid)

    def pool(self, encoded: Encoded) -> Float[Tensor, "batch dim"]:
        """One vector an object: the mean over its tokens, padding left out."""
        tokens = self.context(encoded) if self.config.pooling == "context" else encoded.outputs
        if encoded.valid is None:
            return tokens.float().mean(dim=1)
        weight = encoded.valid[..., None].float()
        return (tokens.float() * weight).sum(dim=1) / weight.sum(dim=1)

    def context(self, encoded: Encoded) -> Float[Tensor, "batch token dim"]:
        """Encoder outputs as the decoder sees them."""
        return self.decoder_proj_context(encoded.outputs) + self._places(encoded.positions)

    def decode(
        self,
        encoded: Encoded,
        positions: Int[Tensor, "batch query"],
        valid: Bool[Tensor, "batch query"],
    ) -> Float[Tensor, "batch query dim"]:
        """Decoder states at the asked positions; each sees only its own stream beside the context.

        Every query starts from the one mask token, so the true token is never fed.
        """
        context = self.context(encoded)
        x = self.mask_token + self._places(positions)
        stream = torch.where(valid, self.stream_of_position[positions], -1)
        allowed = stream[:, :, None] == stream[:, None, :]  # (batch, query, query)
        context_allowed = None if encoded.valid is None else encoded.valid[:, None, :]
        for block in self.decoder:
            x = block(x, context, allowed, context_allowed)
        return self.decoder_norm(x)

    def logits(self, key: str, states: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch code"]:
        """Scores of every code of one stream, from decoder states at positions of that stream."""
        return self._stream(self.decoder_embeddings, key).to_logits(states)

    def _run_encoder(
        self, x: Float[Tensor, "batch token dim"], valid: Bool[Tensor, "batch token"] | None
    ) -> Float[Tensor, "batch token dim"]:
        allowed = None if valid is None else valid[:, None, :]
        for block in self.encoder:
            x = block(x, allowed)
        return self.encoder_norm(x)

    def _places(self, positions: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token dim"]:
        places = [self._stream(self.encoder_embeddings, key).place()[0] for key in self.layout.keys]
        return F.embedding(positions, torch.cat(places))

    @staticmethod
    def _stream(embeddings: nn.ModuleDict, key: str) -> StreamEmbedding:
        embedding = embeddings[key]
        assert isinstance(embedding, StreamEmbedding)
        return embedding

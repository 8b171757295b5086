"""The early-fusion encoder-decoder of AION-1: tokens of any modalities in, tokens of others out.

Every stream has its own token table, head, learned modality vector and fixed positions; all
streams share one encoder and one decoder. Tensor names are those of the released checkpoints, so
that the same code carries the small and the published sizes.

Source: arXiv 2510.17960 and the released package polymathic-aion 0.0.2 (4M-style masked modelling).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from training.blocks import DecoderBlock, EncoderBlock, LayerNorm, Packing
from training.modalities import STREAM
from training.transformer_config import Domain, TransformerConfig

# Who sees whom in the decoder. "training": the queries of one stream see each other, in a sequence
# each its predecessors. "release": AION.forward passes an empty mask, by which every query takes
# the mean over all queries of all streams.
DecoderMask = Literal["training", "release"]
SEQUENCE_POSITIONS = 512  # length of the released position table of a sequence, however short
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
    """What the encoder made of some tokens: a padded row an object, or objects end to end."""

    outputs: Float[Tensor, "*batch token dim"]
    positions: Int[Tensor, "*batch token"]  # in the model's Layout
    valid: Bool[Tensor, "batch token"] | None = None  # False = padding; None = all valid
    packing: Packing | None = None  # objects lie end to end, not in rows


def sin_cos_positions(grid: tuple[int, int], dim: int) -> Float[Tensor, "1 token dim"]:
    """Fixed positions on a grid: [sin, cos] of the first axis, then of the second."""
    # The release builds the table for (h, w) with w as the slower axis; on the square grids of
    # images that is the row. Long streams are (n, 1) grids there, so their index is the last half.
    h, w = grid
    slow, fast = torch.meshgrid(torch.arange(w), torch.arange(h), indexing="ij")
    return torch.cat([_waves(slow, dim // 2), _waves(fast, dim // 2)], dim=1).float()[None]


def sequence_positions(length: int, dim: int) -> Float[Tensor, "1 token dim"]:
    """Fixed positions in a sequence: [sin, cos]."""
    return _waves(torch.arange(length), dim).float()[None]


def _waves(axis: Int[Tensor, "*grid"], dim: int) -> Float[Tensor, "token dim"]:
    frequency = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angles = axis.reshape(-1, 1) * frequency
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def is_sequence(key: str) -> bool:
    """Whether a stream is a sequence of any length: its decoder is fed the true token before."""
    return STREAM[key].kind == "ellipses"


# Fills a parameter in place, by its name in the model.
Draw = Callable[[str, Tensor, torch.Generator], None]


def initialise(name: str, parameter: Tensor, generator: torch.Generator | None = None) -> None:
    """Draw a parameter as a fresh model has it, by its name in the model."""
    if "token_emb" in name:
        nn.init.normal_(parameter, std=TOKEN_STD, generator=generator)
    elif parameter.ndim == 2 and "to_logits" not in name:
        std = parameter.shape[1] ** -0.5  # keeps the variance
        nn.init.normal_(parameter, std=std, generator=generator)
    elif parameter.ndim > 1:
        nn.init.normal_(parameter, std=INIT_STD, generator=generator)
    else:
        nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)


class StreamEmbedding(nn.Module):
    """Tables of one stream: tokens (encoder side), head (decoder side), modality and positions."""

    pos_emb: Tensor

    def __init__(
        self, key: str, config: TransformerConfig, mod_emb: nn.Parameter, *, decoder: bool
    ) -> None:
        super().__init__()
        domain, sequence = config.domains_in[key], is_sequence(key)
        self.num_tokens = domain.num_tokens
        if not decoder or config.released_layout or sequence:
            self.token_emb = nn.Embedding(domain.vocabulary, config.dim)
        if decoder:
            self.to_logits = nn.Linear(config.dim, domain.vocabulary, bias=False)
        self.mod_emb = mod_emb
        if sequence:
            positions = sequence_positions(max(SEQUENCE_POSITIONS, domain.num_tokens), config.dim)
        else:
            positions = sin_cos_positions(domain.grid, config.dim)
        self.register_buffer("pos_emb", positions, persistent=config.released_layout)

    def place(self) -> Float[Tensor, "1 token dim"]:
        """What says which stream and where in it: added to every token."""
        return self.pos_emb[:, : self.num_tokens] + self.mod_emb


class Transformer(nn.Module):
    """The encoder-decoder; see `encode` for vectors and `pretraining` for how it is trained."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layout = Layout.of(config.domains_in)
        shared = {key: nn.Parameter(torch.empty(1, 1, config.dim)) for key in config.domains_in}
        self.encoder_embeddings = nn.ModuleDict(
            {key: StreamEmbedding(key, config, shared[key], decoder=False) for key in shared}
        )
        self.decoder_embeddings = nn.ModuleDict(
            {key: StreamEmbedding(key, config, shared[key], decoder=True) for key in config.asked}
        )
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_depth))
        self.encoder_norm = LayerNorm(config.dim, bias=config.norm_bias)
        self.decoder_proj_context = nn.Linear(config.dim, config.dim)
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_depth))
        self.decoder_norm = LayerNorm(config.dim, bias=config.norm_bias)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.dim))
        self.register_buffer("stream_of_position", self.layout.stream_of_position(), False)
        self._initialise()

    stream_of_position: Tensor

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            initialise(name, parameter)

    def encode(self, tokens: Mapping[str, Int[Tensor, "batch _"]]) -> Encoded:
        """Encode whole streams, the same ones for every object of the batch.

        Raises:
            ValueError: no tokens, an unknown stream, or a stream of another length.
        """
        if not tokens:
            raise ValueError("expected tokens of at least one stream, got none")
        parts, positions = [], []
        for key, codes in tokens.items():
            self.check(key, codes.shape[1])
            parts.append(self._embed(key, codes))
            start = self.layout.start[key]
            positions.append(torch.arange(start, start + codes.shape[1], device=codes.device))
        x = torch.cat(parts, dim=1)
        where = torch.cat(positions).expand(x.shape[0], -1)
        return Encoded(self._run_encoder(x, None), where)

    def encode_packed(self, objects: Sequence[Mapping[str, Int[Tensor, " _"]]]) -> Encoded:
        """Encode objects of which each has streams of its own, end to end and without padding.

        Objects of equal length should be neighbours: on a CPU those go through together.

        Raises:
            ValueError: no object, an object without tokens, or as `encode`.
        """
        if torch.is_inference_mode_enabled():  # nested tensors, the way of a GPU, know it not
            with torch.inference_mode(False), torch.no_grad():
                return self.encode_packed(objects)
        lengths = tuple(sum(len(codes) for codes in tokens.values()) for tokens in objects)
        if not lengths or not all(lengths):
            raise ValueError(f"expected objects with tokens, got lengths {list(lengths)}")
        rows: dict[str, list[Tensor]] = {}  # stream -> where its tokens go
        codes: dict[str, list[Tensor]] = {}
        row = 0
        for tokens in objects:
            for key, mine in tokens.items():
                self.check(key, len(mine))
                rows.setdefault(key, []).append(torch.arange(row, row + len(mine)))
                codes.setdefault(key, []).append(mine)
                row += len(mine)
        device = self.mask_token.device
        x = torch.empty(row, self.config.dim, dtype=self.mask_token.dtype, device=device)
        positions = torch.empty(row, dtype=torch.long, device=device)
        for key, mine_of in codes.items():
            where = torch.cat(rows[key]).to(device)
            at = torch.cat([torch.arange(len(mine)) for mine in mine_of]).to(device)
            embedding = self._stream(self.encoder_embeddings, key)
            x[where] = embedding.token_emb(torch.cat(mine_of)) + embedding.place()[0][at]
            positions[where] = self.layout.start[key] + at
        packing = Packing(lengths)
        return Encoded(self._run_encoder(x, packing), positions, packing=packing)

    def encode_selected(
        self,
        ids: Int[Tensor, "batch token"],
        positions: Int[Tensor, "batch token"],
        valid: Bool[Tensor, "batch token"] | None,
    ) -> Encoded:
        """Encode tokens picked from any streams: layout ids at layout positions, padded rows.

        The positions of a sequence count its picked tokens: the first picked is at its start.
        """
        tables = [
            self._stream(self.encoder_embeddings, key).token_emb.weight for key in self.layout.keys
        ]
        x = F.embedding(ids, torch.cat(tables)) + self._places(positions)
        if valid is None:
            return Encoded(self._run_encoder(x, None), positions)
        x = x * valid[..., None]
        return Encoded(self._run_encoder(x, valid[:, None, :]), positions, valid)

    def pool(self, encoded: Encoded) -> Float[Tensor, "batch dim"]:
        """One vector an object: the mean over its tokens, padding left out."""
        tokens = self.pooled_tokens(encoded)
        if encoded.packing is not None:
            lengths = torch.tensor(encoded.packing.lengths, device=tokens.device)
            return torch.segment_reduce(tokens, "mean", lengths=lengths, axis=0)
        if encoded.valid is None:
            return tokens.mean(dim=1)
        weight = encoded.valid[..., None].float()
        return (tokens * weight).sum(dim=1) / weight.sum(dim=1)

    def pooled_tokens(self, encoded: Encoded) -> Float[Tensor, "*batch token dim"]:
        """What a vector is pooled from, in float32; `pooling` in the configuration says which."""
        return (
            self.context(encoded) if self.config.pooling == "context" else encoded.outputs
        ).float()

    def context(self, encoded: Encoded) -> Float[Tensor, "*batch token dim"]:
        """Encoder outputs as the decoder sees them: what AION.encode returns."""
        return self.decoder_proj_context(encoded.outputs) + self._places(encoded.positions)

    def decode(
        self,
        encoded: Encoded,
        positions: Int[Tensor, "batch query"],
        valid: Bool[Tensor, "batch query"],
        *,
        previous: Int[Tensor, "batch query"] | None = None,
        mask: DecoderMask = "training",
    ) -> Float[Tensor, "batch query dim"]:
        """Decoder states at the asked positions; each sees only its own stream beside the context.

        Every query of an order-free stream starts from the one mask token, so the true token is
        never fed. In a sequence the query at position n is fed the true code n and asks for code
        n + 1; queries of a sequence must be given in their order.

        Args:
            encoded: What the encoder made, in rows (`encode`, `encode_selected`).
            positions: In the model's Layout; those of a sequence count its asked tokens.
            valid: False = padding.
            previous: At queries of a sequence its code there; not read at others.
            mask: Who sees whom, see DecoderMask.

        Raises:
            ValueError: a sequence is asked for without `previous`, or padding is given with the
                mask of the release, whose mean would be over padding too.
        """
        assert encoded.packing is None
        places = self._places(positions, decoder=True)
        x = self.mask_token + places
        stream = torch.where(valid, self.stream_of_position[positions], -1)
        allowed = None
        if mask == "release":
            if not bool(valid.all()):
                raise ValueError('queries must all be valid with mask "release"')
        else:
            allowed = stream[:, :, None] == stream[:, None, :]  # (batch, query, query)
        for number, key in enumerate(self.layout.keys):
            if not is_sequence(key):
                continue
            mine = stream == number
            if previous is None:
                if bool(mine.any()):
                    raise ValueError(f"{key} is a sequence: give the codes before those asked for")
                continue
            table = self._stream(self.decoder_embeddings, key).token_emb
            fed = table(torch.where(mine, previous, 0)) + places
            x = torch.where(mine[..., None], fed, x)
            if allowed is not None:
                order = torch.arange(positions.shape[1], device=positions.device)
                allowed = allowed & ~(mine[:, :, None] & (order[None] > order[:, None]))
        context = self.context(encoded)
        context_allowed = None if encoded.valid is None else encoded.valid[:, None, :]
        for block in self.decoder:
            x = block(x, context, allowed, context_allowed)
        return self.decoder_norm(x)

    def logits(self, key: str, states: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch code"]:
        """Scores of every code of one stream, from decoder states at positions of that stream."""
        return self._stream(self.decoder_embeddings, key).to_logits(states)

    def check(self, key: str, length: int) -> None:
        """Raise ValueError unless the model takes that many tokens of that stream."""
        if key not in self.layout.start:
            known = ", ".join(self.layout.keys)
            raise ValueError(f"this encoder has no stream {key!r}, it has {known}")
        expected = self.layout.num_tokens[key]
        if is_sequence(key):
            if not 0 < length <= expected:
                raise ValueError(f"{key} has 1 to {expected} tokens, got {length}")
        elif length != expected:
            raise ValueError(f"{key} has {expected} tokens, got {length}")

    def _embed(self, key: str, codes: Int[Tensor, "*batch token"]) -> Tensor:
        embedding = self._stream(self.encoder_embeddings, key)
        return embedding.token_emb(codes) + embedding.place()[0, : codes.shape[-1]]

    def _run_encoder(
        self,
        x: Float[Tensor, "*batch token dim"],
        allowed: Bool[Tensor, "batch 1 token"] | Packing | None,
    ) -> Float[Tensor, "*batch token dim"]:
        for block in self.encoder:
            x = block(x, allowed)
        return self.encoder_norm(x)

    def _places(
        self, positions: Int[Tensor, "*batch token"], *, decoder: bool = False
    ) -> Float[Tensor, "*batch token dim"]:
        places = []
        for key in self.layout.keys:
            asked = decoder and key in self.decoder_embeddings
            embeddings = self.decoder_embeddings if asked else self.encoder_embeddings
            places.append(self._stream(embeddings, key).place()[0])
        return F.embedding(positions, torch.cat(places))

    @staticmethod
    def _stream(embeddings: nn.ModuleDict, key: str) -> StreamEmbedding:
        embedding = embeddings[key]
        assert isinstance(embedding, StreamEmbedding)
        return embedding

"""What masked modelling minimises: cross-entropies of asked tokens, and which weights decay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from training.kinship import KinshipConfig, kinship_loss
from training.loader import Batch
from training.pretraining_config import LossKind
from training.transformer import Encoded, Transformer, is_sequence


class MaskedModelling(nn.Module):
    """A transformer and its losses, in one forward pass as distributed training needs it.

    Every head and table takes part in every pass, if with no tokens: processes then agree about
    which parameters have gradients.
    """

    def __init__(self, transformer: Transformer, kinship: KinshipConfig | None = None) -> None:
        super().__init__()
        self.transformer = transformer
        self.kinship = kinship
        # draws those weights of a part that have no memory yet; None = all have
        self.prepare: Callable[[nn.Module], None] | None = None

    def forward(
        self,
        shown: Int[Tensor, "row input"],
        positions: Int[Tensor, "row input"],
        valid: Bool[Tensor, "row input"] | None,
        targets: Int[Tensor, "row target"],
        target_valid: Bool[Tensor, "row target"],
        previous: Int[Tensor, "row target"] | None,
        asked: Int[Tensor, " asked"],
        codes: Int[Tensor, " asked"],
        counts: Sequence[int],
        objects: Int64[Tensor, " row"] | None = None,
        labels: Bool[Tensor, "row label"] | None = None,
    ) -> Float[Tensor, " loss"]:
        """Summed cross-entropy of the asked tokens of each stream, in nats; after them kinship."""
        transformer = self.transformer
        encoded: Encoded = transformer.encode_selected(shown, positions, valid)
        states = transformer.decode(encoded, targets, target_valid, previous=previous)
        of_stream = torch.split(states.flatten(0, 1)[asked], list(counts))
        codes_of = torch.split(codes, list(counts))
        sums = []
        for key, mine, true in zip(transformer.layout.keys, of_stream, codes_of, strict=True):
            if key not in transformer.decoder_embeddings:
                sums.append(states.new_zeros((), dtype=torch.float32))
                continue
            logits = transformer.logits(key, mine).float()
            sums.append(F.cross_entropy(logits, true, reduction="sum"))
        if self.kinship is not None and objects is not None and labels is not None:
            vectors = F.normalize(transformer.pool(encoded), dim=-1)
            # at first all vectors are nearly parallel: bfloat16 cannot tell them apart
            with torch.autocast(vectors.device.type, enabled=False):
                sums.append(kinship_loss(vectors, objects, labels, self.kinship))
        return torch.stack(sums)


def losses(module: nn.Module, batch: Batch) -> Float[Tensor, " loss"]:
    """The forward pass of MaskedModelling, or of what wraps it."""
    sums: Tensor = module(
        batch.shown, batch.positions, batch.valid, batch.targets, batch.target_valid,
        batch.previous, batch.asked, batch.codes, batch.counts, batch.objects, batch.labels,
    )  # fmt: skip
    return sums


def token_weights(counts: Float64[Tensor, " stream"], kind: LossKind) -> Float[Tensor, " stream"]:
    """What one token of each stream weighs in the loss, from the counts of the whole batch."""
    if kind == "token":
        return (torch.ones_like(counts) / counts.sum()).float()
    asked = counts > 0
    return torch.where(asked, 1 / (counts.clamp(min=1) * asked.sum()), 0.0).float()


def freeze_unused(transformer: Transformer) -> None:
    """Keep as they are the tables of the released layout that no forward pass reads."""
    for name, parameter in transformer.decoder_embeddings.named_parameters():
        key, _, table = name.partition(".")
        if table == "token_emb.weight" and not is_sequence(key):
            parameter.requires_grad_(False)


def freeze_encoder(transformer: Transformer) -> None:
    """Keep as they are all weights that a vector depends on, if it is the mean of the outputs."""
    for part in (
        transformer.encoder_embeddings,
        transformer.encoder,
        transformer.encoder_norm,
    ):
        part.requires_grad_(False)


def checkpoint_activations(transformer: Transformer) -> None:
    """Keep of each block only what goes in; the backward pass computes the rest again."""
    for block in (*transformer.encoder, *transformer.decoder):
        forward = block.forward

        def again(*args: object, forward: object = forward) -> object:
            return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False)

        block.forward = again


def parameter_groups(transformer: Transformer, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; scales, biases, modality vectors and the mask token do not."""
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in transformer.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or name.endswith(("mod_emb", "mask_token"))
            (free if plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]

"""How a transformer is trained: the table [encoder.training] of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass

from training.kinship import KinshipConfig
from training.masking import MaskingConfig

Precision = Literal["float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]
Strategy = Literal["ddp", "fsdp"]
# "modality": the mean over the modalities' means; "token": the mean over all asked tokens.
LossKind = Literal["modality", "token"]

# Settings that say how a run computes, not what: they may change when it is resumed.
MAY_CHANGE = frozenset(
    {
        "micro_batch_size", "compile", "checkpoint_activations", "device", "strategy",
        "checkpoint_steps", "num_threads",
    }
)  # fmt: skip


@checked_dataclass(
    frozen=True,
    slots=True,
    kw_only=True,
    config=ConfigDict(extra="forbid", allow_inf_nan=False),
)
class PretrainingConfig:
    """How a transformer is trained."""

    masking: MaskingConfig = MaskingConfig()
    kinship: KinshipConfig | None = None  # absent from AION-1
    begin: str | None = None  # folder or Hub repository of an encoder to continue; None = afresh
    # "decoder": the encoder stays as it began, and so do all vectors and the search head.
    train_only: Literal["decoder"] | None = None
    value_share: float = Field(default=0.0, ge=0, le=1)  # see code_values; absent from AION-1
    steps: int = Field(default=20_000, gt=0)
    max_seconds: float | None = Field(
        default=None, gt=0
    )  # the cosine ends with what runs out first
    batch_size: int = Field(default=64, gt=0)  # rows a step, of all processes together
    micro_batch_size: int | None = Field(default=None, gt=0)  # rows a forward pass
    learning_rate: float = Field(default=2e-4, gt=0)  # at the peak
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.05, ge=0)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    loss: LossKind = "modality"
    precision: Precision = "bfloat16"
    device: Device = "auto"
    strategy: Strategy = "ddp"  # with several processes
    compile: bool = False
    checkpoint_activations: bool = False
    validation_share: float = Field(default=0.05, ge=0, lt=1)  # of the objects, never trained on
    max_validation_rows: int = Field(default=8192, gt=0)
    log_steps: int = Field(default=100, gt=0)
    checkpoint_steps: int = Field(default=500, gt=0)
    num_threads: int = Field(default=2, gt=0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _agrees(self) -> PretrainingConfig:
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} is more than the batch_size "
                f"{self.batch_size} that it is a part of"
            )
        if self.begin is not None and self.value_share:
            raise ValueError("begin and value_share both say how tables of tokens begin")
        if self.train_only is not None and self.begin is None:
            raise ValueError("train_only leaves an encoder as it is: name the encoder with begin")
        if self.train_only is not None and self.kinship is not None:
            raise ValueError("kinship teaches the encoder, which train_only leaves as it is")
        if self.kinship is not None and self.micro_batch_size is not None:
            raise ValueError(
                "kinship compares all rows of a batch: it cannot be made of parts, as "
                f"micro_batch_size {self.micro_batch_size} asks"
            )
        if self.kinship is not None and self.batch_size % self.kinship.rows_per_object:
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by kinship.rows_per_object "
                f"{self.kinship.rows_per_object}"
            )
        return self

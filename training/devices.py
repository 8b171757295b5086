"""Where training runs: one process or many, on CPUs or GPUs, weights whole or spread over all.

Lightning Fabric carries device, precision and processes. Many processes are started by `torchrun`;
its environment variables say how many there are.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from training.kinship import KinshipConfig
from training.objective import (
    MaskedModelling,
    checkpoint_activations,
    freeze_encoder,
    freeze_unused,
    parameter_groups,
)
from training.pretraining_config import Device, Precision, Strategy
from training.processes import num_local_processes, num_processes
from training.transformer import Draw, Transformer, initialise
from training.transformer_config import TransformerConfig
from training.weights import without_memory

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.wrappers import _FabricModule

BETAS = (0.9, 0.95)  # of AdamW; arXiv 2510.17960
_FABRIC_PRECISION: dict[Precision, Literal["32-true", "bf16-mixed"]] = {
    "float32": "32-true",
    "bfloat16": "bf16-mixed",
}
# Others wait while the first process tokenizes.
TIMEOUT = timedelta(hours=12)


def launch(
    *,
    device: Device = "auto",
    strategy: Strategy = "ddp",
    precision: Precision = "bfloat16",
) -> Fabric:
    """Join the other processes, if there are any.

    Args:
        device: Where to compute; "auto" takes GPUs where there are some.
        strategy: "ddp" keeps all weights in every process, "fsdp" spreads weights, gradients and
            moments over all of them (FSDP2). It matters with several processes only.
        precision: Of matrix products; weights and sums are float32.

    Raises:
        ValueError: "cuda" is asked for where there is none.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: 'cuda' is asked for, and torch finds no CUDA device here")
    world_size = num_processes()
    accelerator = "auto" if device == "auto" else device
    if world_size == 1:
        return Fabric(accelerator=accelerator, devices=1, precision=_FABRIC_PRECISION[precision])
    local = num_local_processes()
    how: DDPStrategy | ModelParallelStrategy
    if strategy == "fsdp":
        half = precision == "bfloat16"
        how = ModelParallelStrategy(
            lambda module, mesh: shard(module, mesh["data_parallel"], half=half),
            data_parallel_size=world_size,
            tensor_parallel_size=1,
            timeout=TIMEOUT,
        )
    else:
        how = DDPStrategy(timeout=TIMEOUT)
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=world_size // local,
        strategy=how,
        precision=_FABRIC_PRECISION[precision],
        plugins=[TorchElasticEnvironment()],
    )
    fabric.launch()
    return fabric


def build(
    config: TransformerConfig,
    *,
    seed: int,
    kinship: KinshipConfig | None = None,
    draw: Draw = initialise,
    decoder_only: bool = False,
) -> MaskedModelling:
    """A model of any size, without memory for its weights until `set_up`.

    Args:
        config: Its sizes and streams.
        seed: Of its fresh weights.
        kinship: What else than masked modelling it is trained on.
        draw: Fills a parameter in place, by its name in the transformer.
        decoder_only: Whether the encoder stays as it is drawn.
    """
    with without_memory():
        transformer = Transformer(config)
    freeze_unused(transformer)
    if decoder_only:
        freeze_encoder(transformer)
    module = MaskedModelling(transformer, kinship)
    names = {id(parameter): name for name, parameter in transformer.named_parameters()}
    module.prepare = lambda part: _materialise(part, seed, names, draw)
    return module


def set_up(
    fabric: Fabric,
    module: MaskedModelling,
    *,
    learning_rate: float,
    weight_decay: float,
    compiled: bool = False,
    checkpointed: bool = False,
) -> tuple[_FabricModule, torch.optim.Optimizer]:
    """Give a model its weights on the devices of all processes, and make its optimizer.

    Args:
        fabric: From `launch`.
        module: From `build`.
        learning_rate: Until the schedule sets another.
        weight_decay: Of matrices.
        compiled: Compile each block.
        checkpointed: Keep of each block only its input, see `checkpoint_activations`.

    Returns:
        What to call for the losses, and the optimizer.
    """
    transformer = module.transformer
    if checkpointed:
        checkpoint_activations(transformer)
    if compiled:
        for block in (*transformer.encoder, *transformer.decoder):
            block.forward = torch.compile(block.forward)
    if not is_sharding(fabric):
        assert module.prepare is not None
        module.prepare(module)
    wrapped = fabric.setup_module(module)
    optimizer = torch.optim.AdamW(
        parameter_groups(transformer, weight_decay), lr=learning_rate, betas=BETAS, fused=True
    )
    return wrapped, optimizer


def is_sharding(fabric: Fabric) -> bool:
    """Whether weights are spread over processes."""
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

    return isinstance(fabric.strategy, ModelParallelStrategy)


def shard(module: MaskedModelling, mesh: DeviceMesh, *, half: bool) -> MaskedModelling:
    """Spread a model from `build` over the processes of a mesh, block by block (FSDP2).

    No process holds more than its part, one whole block and the tables at once.

    Args:
        module: Weights may still be without memory.
        mesh: One-dimensional.
        half: Gather the blocks' weights as bfloat16, as they are multiplied.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if half else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for block in (*module.transformer.encoder, *module.transformer.decoder):
        if module.prepare is not None:
            module.prepare(block)
        fully_shard(block, mesh=mesh, mp_policy=policy)
    if module.prepare is not None:
        module.prepare(module)
    fully_shard(module, mesh=mesh)
    return module


def _materialise(part: nn.Module, seed: int, names: dict[int, str], draw: Draw) -> None:
    """Draw those weights of a part of a model that have no memory yet.

    Each is drawn from the seed and its own name: any division of a model gives the same weights.
    """
    made: dict[int, nn.Parameter] = {}
    for module in part.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_meta:
                continue
            if id(parameter) not in made:
                made[id(parameter)] = _drawn(names[id(parameter)], parameter, seed, draw)
            setattr(module, name, made[id(parameter)])


def _drawn(name: str, empty: nn.Parameter, seed: int, draw: Draw) -> nn.Parameter:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    weight = torch.empty(empty.shape, dtype=empty.dtype)
    draw(name, weight, generator)
    return nn.Parameter(weight, requires_grad=empty.requires_grad)

"""LoRA: small trained matrices beside the frozen layers of a tower, through peft."""

from torch import nn

ADAPTER = "lora_"  # what peft calls its parameters


def add_adapters(visual: nn.Module, blocks: list[nn.Module], rank: int) -> None:
    """peft's LoRA on the layers of `blocks`, which stay frozen themselves.

    Every linear layer, attention and pointwise convolution gets an adapter of that rank.
    """
    from peft import LoraConfig, inject_adapter_in_model

    inside = {id(module) for block in blocks for module in block.modules()}
    hidden = _layers_read_by_their_parent(visual)
    names = [
        name
        for name, module in visual.named_modules()
        if id(module) in inside and id(module) not in hidden and _adaptable(module)
    ]
    trained = {name for name, p in visual.named_parameters() if p.requires_grad}
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), visual)

    # peft freezes all that is not its own
    for name, p in visual.named_parameters():
        p.requires_grad_(ADAPTER in name or name in trained)


def _layers_read_by_their_parent(visual: nn.Module) -> set[int]:
    """Ids of layers whose weight their parent reads instead of calling them.

    Inside torch's attention, which peft adapts as a whole, and the qkv layer of EVA.
    """
    hidden = set()
    for module in visual.modules():
        if isinstance(module, nn.MultiheadAttention):
            hidden |= {id(child) for child in module.modules() if child is not module}
        if getattr(module, "q_bias", None) is not None:
            hidden.add(id(module.qkv))
    return hidden


def _adaptable(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear | nn.MultiheadAttention)

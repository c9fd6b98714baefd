"""The cut, what trains, depth, adapters: on small towers of each family, with random weights."""

import copy

import open_clip
import pytest
import torch

from src.model_a.chain import blocks_of, chain_of
from src.model_a.tower import Tower, strided_depthwise_in_float32

CONFIGS = {
    "openai_vit": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 3, "head_width": 32},
    "vit_avg": {
        "image_size": 32,
        "patch_size": 16,
        "width": 64,
        "layers": 3,
        "head_width": 32,
        "pool_type": "avg",
        "final_ln_after_pool": True,
    },
    "siglip": {
        "timm_model_name": "test_vit",
        "timm_pool": "map",
        "timm_proj": "none",
        "image_size": 160,
    },
    "eva": {
        "timm_model_name": "eva02_tiny_patch14_224",
        "timm_pool": "token",
        "timm_proj": "linear",
        "image_size": 224,
    },
    "convnext": {
        "timm_model_name": "test_convnext",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 32,
    },
    "efficientnet": {
        "timm_model_name": "test_efficientnet",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 32,
    },
    "resnet": {"image_size": 32, "layers": (1, 1, 1, 1), "width": 16},
    "timm_resnet": {
        "timm_model_name": "test_resnet",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 32,
    },
}
CUT = (
    "openai_vit",
    "vit_avg",
    "siglip",
    "eva",
    "convnext",
    "efficientnet",
)  # families whose frozen blocks are kept


def visual(family):
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    torch.manual_seed(0)
    return _build_vision_tower(16, CLIPVisionCfg(**CONFIGS[family])).eval()


def images(tower):
    size = tower.image_size if isinstance(tower.image_size, int) else tower.image_size[0]
    return torch.randn(2, 3, size, size)


@pytest.fixture(scope="module", params=CONFIGS)
def family(request):
    return request.param, visual(request.param)


def test_the_two_parts_give_what_the_whole_gives_and_only_the_end_trains(family):
    name, whole = family
    x = images(whole)
    expected = torch.nn.functional.normalize(whole(x), dim=-1)
    tower = Tower(copy.deepcopy(whole), 1)
    assert tower.splits == (name in CUT)
    torch.testing.assert_close(tower(tower.frozen(x)), expected, atol=1e-4, rtol=1e-3)
    tower(tower.frozen(x)).sum().backward()
    trained = {n for n, p in tower.named_parameters() if p.requires_grad}
    assert all(tower.depth(n) <= 1 for n in trained) and {tower.depth(n) for n in trained} == {0, 1}
    assert any(tower.depth(n) == 2 for n, _ in tower.named_parameters()), (
        "blocks before the last one stay frozen"
    )


def test_depth_counts_blocks_from_the_end(family):
    _, whole = family
    tower = Tower(copy.deepcopy(whole), -1, train_depthwise=True)
    depths = {tower.depth(name) for name, _ in tower.named_parameters()}
    assert depths == set(range(len(blocks_of(whole)) + 2))
    assert all(p.requires_grad for p in tower.parameters())


def test_a_frozen_tower_gives_unit_embeddings_and_trains_nothing(family):
    _, whole = family
    tower = Tower(copy.deepcopy(whole), 0)
    x = images(whole)
    torch.testing.assert_close(
        tower(tower.frozen(x)),
        torch.nn.functional.normalize(whole(x), dim=-1),
        atol=1e-5,
        rtol=1e-3,
    )
    assert not any(p.requires_grad for p in tower.parameters())


@pytest.mark.parametrize("name", ["openai_vit", "convnext", "siglip"])
def test_checkpointing_changes_no_gradient(name):
    gradients = []
    for checkpointing in (False, True):
        tower = Tower(visual(name), 2, checkpointing=checkpointing)
        torch.manual_seed(1)
        tower(tower.frozen(images(tower.visual))).square().cumsum(-1).sum().backward()
        gradients.append({n: p.grad for n, p in tower.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 10
    for n, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][n], gradient)


@pytest.mark.parametrize("name", ["openai_vit", "convnext", "siglip", "eva", "efficientnet"])
def test_adapters_start_without_effect_and_train_on_the_frozen_blocks(name):
    whole = visual(name)
    x = images(whole)
    expected = torch.nn.functional.normalize(whole(x), dim=-1)
    tower = Tower(whole, 1, lora_rank=2)
    torch.testing.assert_close(tower(tower.frozen(x)), expected, atol=1e-4, rtol=1e-3)
    tower(tower.frozen(x)).square().cumsum(-1).sum().backward()
    adapters = [p for n, p in tower.named_parameters() if "lora_" in n]
    assert adapters and all(p.requires_grad and p.grad is not None for p in adapters)
    assert any(p.grad.abs().sum() > 0 for p in adapters)
    others = [n for n, p in tower.named_parameters() if p.requires_grad and "lora_" not in n]
    assert others and all(tower.depth(n) <= 1 for n in others)


@pytest.mark.parametrize("name", ["openai_vit", "efficientnet"])
def test_adapters_on_the_last_frozen_blocks_alone_let_the_others_be_kept(name):
    whole = visual(name)
    x = images(whole)
    expected = torch.nn.functional.normalize(whole(x), dim=-1)
    n = len(blocks_of(whole))
    tower = Tower(whole, 1, lora_rank=2, lora_blocks=1)
    assert tower.cut == n - 2 and tower.splits
    torch.testing.assert_close(tower(tower.frozen(x)), expected, atol=1e-4, rtol=1e-3)
    assert {tower.depth(name) for name, _ in tower.named_parameters() if "lora_" in name} == {2}
    assert Tower(visual(name), 1, lora_rank=2, lora_blocks=-1).cut == 0


def test_strided_depthwise_convolutions_that_pass_a_gradient_run_in_float32():
    tower = Tower(visual("efficientnet"), 2)
    found = {}
    strided_depthwise_in_float32(tower)
    for name, module in tower.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda module, args, out, name=name: found.update({name: (module, out.dtype)})
            )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tower(tower.frozen(images(tower.visual)))
    behind = tuple(f"visual.trunk.blocks.{i}." for i in range(tower.cut, tower.n_blocks))
    strided = {
        name
        for name, (module, _) in found.items()
        if name.startswith(behind) and module.groups > 1 and module.stride != (1, 1)
    }
    assert (
        strided
        and {name for name, (_, dtype) in found.items() if dtype == torch.float32} == strided
    )


def test_depthwise_kernels_train_only_when_asked():
    def trained(**options):
        return [
            p for p in Tower(visual("efficientnet"), 2, **options).parameters() if p.requires_grad
        ]

    assert len(trained(train_depthwise=True)) == len(trained()) + 2  # one a block that trains


def test_a_tower_of_fewer_blocks_is_refused_with_the_number():
    with pytest.raises(ValueError, match="trainable_blocks 99, but the tower has 3"):
        Tower(visual("openai_vit"), 99)
    with pytest.raises(ValueError, match="no block is frozen"):
        Tower(visual("openai_vit"), 3, lora_rank=4)
    with pytest.raises(ValueError, match="lora_blocks 3, but 2 of the 3 blocks are frozen"):
        Tower(visual("openai_vit"), 1, lora_rank=4, lora_blocks=3)


def test_a_chain_that_is_none_is_left_whole():
    whole = visual("openai_vit")
    assert chain_of(whole) is not None
    whole.transformer.resblocks[0].register_forward_hook(lambda module, args, out: out * 1)
    whole._embeds_kept = whole._embeds
    whole._embeds = lambda x: whole._embeds_kept(x)
    whole.forward = lambda x: whole._pool(whole.transformer(whole._embeds(x) * 2))[0] @ whole.proj
    assert not Tower(whole, 1).splits, "the check must notice that the whole does something else"


def test_open_clip_is_the_version_whose_parts_are_used():
    assert hasattr(open_clip.transformer.VisionTransformer, "_embeds") and hasattr(
        open_clip.transformer.VisionTransformer, "_pool"
    )


def test_a_tower_that_trains_whole_checkpoints_its_own_blocks():
    tower = Tower(visual("openai_vit"), -1, checkpointing=True)
    assert not tower.splits and tower.visual.transformer.grad_checkpointing


def test_a_tower_without_known_blocks_is_refused_with_what_it_can_do():
    with pytest.raises(
        ValueError,
        match="no blocks found in a Linear: this tower can be used with tower: frozen only",
    ):
        blocks_of(torch.nn.Linear(2, 2))

"""Text towers read no padding that changes nothing, and every other tower reads all of it."""

import numpy as np
import open_clip
import pytest
import torch

from src import encoder
from src.encoder import padding, towers
from tests.helpers import random_clips, toy_training

END = 49407  # open_clip's token behind every prompt
PROMPTS = ["a fox", "two boats on ice", "", "a red house beside the calm old sea " * 5]
LONGEST_SHORT = 6  # tokens of "two boats on ice", with those at its beginning and end

# text config of the tower, and whether padding changes nothing there
TOWERS = {
    "last token": ({}, True),
    "the end by its id": ({"pool_type": "eos", "eos_id": END}, True),
    "class token": ({"embed_cls": True}, False),
    "every token sees every other": ({"no_causal_mask": True}, False),
    "last place of the context": ({"pool_type": "last"}, False),
}


def clip_of(text: dict, *, custom: bool) -> encoder.Encoder:
    """A CLIP of open_clip with random weights, its text tower a part of its own if `custom`."""
    torch.manual_seed(0)
    model_class = open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP
    config = toy_training.TEXT | {"layers": 2} | text
    model = model_class(embed_dim=24, vision_cfg=toy_training.VISION, text_cfg=config)
    return encoder.Encoder(
        model=model.eval(),
        tokenizer=open_clip.SimpleTokenizer(context_length=16),
        geometry=None,
        mean=toy_training.MEAN,
        std=toy_training.STD,
        device=torch.device("cpu"),
        fingerprint="random",
        name="random",
    )


@pytest.mark.parametrize(("text", "is_cut"), TOWERS.values(), ids=TOWERS)
@pytest.mark.parametrize("custom", [True, False], ids=["text tower", "text in the model"])
@torch.inference_mode()
def test_embeddings_are_the_same_without_padding(text, is_cut, custom):
    if "embed_cls" in text and not custom:
        pytest.skip("open_clip has a class token only in a text tower of its own")
    clip = clip_of(text, custom=custom)
    for prompts, longest in ((PROMPTS[:3], LONGEST_SHORT), (PROMPTS, 16)):
        whole = clip.tokenizer(prompts)
        tokens = encoder.trimmed(clip, whole)
        assert tokens.shape[1] == (longest if is_cut else 16)
        expected = clip.model.encode_text(whole)
        torch.testing.assert_close(
            encoder.encode_tokens(clip, tokens), expected, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize(("family", "is_cut"), [("clip", True), ("siglip", False)])
@torch.inference_mode()
def test_hugging_face_towers(family, is_cut, tmp_path):
    """CLIP's end of a prompt is its id or, in old configs, the highest id of the vocabulary."""
    clip = encoder.load(random_clips.write_hugging_face_clip(family, tmp_path), device="cpu")
    whole = clip.tokenizer(["a fox", "a red boat", ""])
    assert whole.shape[1] == 12
    tokens = encoder.trimmed(clip, whole)
    assert tokens.shape[1] == (5 if is_cut else 12)
    expected = clip.model.encode_text(whole)
    torch.testing.assert_close(encoder.encode_tokens(clip, tokens), expected)
    if not is_cut:
        return

    highest = 9
    clip.model.text_model.config.eos_token_id = towers.OLD_END
    clip.model.text_model.eos_token_id = towers.OLD_END
    whole = torch.where(whole == 1, highest, whole)
    tokens = encoder.trimmed(clip, whole)
    assert tokens.shape[1] == 5
    expected = clip.model.encode_text(whole)
    assert not torch.allclose(expected[0], expected[1]), "taken from the start, equal for all"
    torch.testing.assert_close(encoder.encode_tokens(clip, tokens), expected)


def test_prompts_of_every_length_keep_their_order(monkeypatch):
    clip = clip_of({}, custom=False)
    prompts = [" ".join(["fox"] * n) for n in range(18)] * 5
    short = encoder.embed_texts(clip, prompts[::-1])[::-1]

    monkeypatch.setattr(padding, "_causal_text", lambda model: None)
    whole = encoder.embed_texts(clip, prompts)
    assert len(np.unique(whole.round(3), axis=0)) > 10
    np.testing.assert_allclose((short * whole).sum(axis=1), 1, atol=1e-3)  # bf16


def test_the_towers_own_tensors_stay_as_they_are():
    clip = clip_of({}, custom=True)
    before = {name: tensor.clone() for name, tensor in clip.model.state_dict().items()}
    mask = clip.model.text.attn_mask.clone()
    encoder.embed_texts(clip, PROMPTS[:2])
    after = clip.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(clip.model.text.attn_mask, mask)

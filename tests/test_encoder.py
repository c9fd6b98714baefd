"""Which CLIP it is, wherever its folder lies; and in what precision a CPU runs the towers."""

import shutil
import threading
from dataclasses import dataclass

import pytest
import torch

from src import artifacts, encoder
from src.batches import prepared, read_together, to_device
from tests.helpers import toy_training


@pytest.mark.parametrize(
    ("capability", "native", "offered", "bf16"),
    [
        ("AVX512", True, True, True),  # AMD Zen 4, Intel Sapphire Rapids
        (
            "AVX512",
            False,
            True,
            False,
        ),  # Intel Skylake to Ice Lake: oneDNN computes it with fp32's instructions, slower
        ("AVX512", None, True, False),  # the same in a torch that does not tell
        ("AVX2", False, False, False),  # AMD Zen 3
        ("DEFAULT", False, True, True),  # ARM
    ],
    ids=["AVX-512 with bf16", "AVX-512 alone", "AVX-512, older torch", "AVX2", "ARM"],
)
def test_bf16_is_used_only_where_the_cpu_multiplies_it(
    monkeypatch, capability, native, offered, bf16
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: offered)
    if native is None:
        monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    else:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    with encoder.autocast(torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu") == bf16


def test_a_copy_is_the_same_clip_and_a_changed_file_makes_another(tmp_path):
    name = toy_training.write_clip(tmp_path / "clip")
    copy = tmp_path / "copy"
    shutil.copytree(
        tmp_path / "clip", copy, copy_function=shutil.copyfile
    )  # the files' times are lost
    fingerprint = encoder.load(name, device="cpu").fingerprint
    (copy / ".cache").mkdir()
    (copy / ".cache" / "downloaded").write_text("today")
    assert encoder.load(f"local-dir:{copy}", device="cpu").fingerprint == fingerprint
    config = artifacts.load_json(copy / "open_clip_config.json")
    config["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.5]
    artifacts.save_json(copy / "open_clip_config.json", config)
    assert encoder.load(f"local-dir:{copy}", device="cpu").fingerprint != fingerprint


def test_for_a_gpu_the_next_batch_is_prepared_while_this_one_is_used():
    def prepare(n):
        started.append(n)
        return threading.current_thread().name, n * n

    for kind, ahead in (("cpu", 0), ("cuda", 1)):
        started = []
        for n, (thread, square) in enumerate(prepared(prepare, range(5), torch.device(kind))):
            assert square == n * n
            assert (thread == threading.main_thread().name) == (kind == "cpu")
            assert len(started) <= min(n + 1 + ahead, 5)
        assert started == list(range(5))


@dataclass(frozen=True)
class Pair:
    """A batch as training has it: tensors, and what is none."""

    inputs: torch.Tensor
    weight: torch.Tensor | None
    rows: list[int]


def test_a_batch_for_a_gpu_is_pinned_in_the_thread_that_reads_it(monkeypatch):
    copied = []
    pinned = []

    def pin_memory(tensor):
        assert threading.current_thread() is not threading.main_thread()
        pinned.append(tensor.clone())
        return pinned[-1]

    def to(tensor, device, *, non_blocking):
        assert any(tensor is x for x in pinned)
        assert non_blocking and device.type == "cuda"
        copied.append(tensor)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: any(tensor is x for x in pinned))
    monkeypatch.setattr(torch.Tensor, "to", to)
    gpu = torch.device("cuda")

    def read(n):
        return {"pair": Pair(torch.full((2,), n), torch.zeros(2), [n]), "none": None}

    for n, batch in enumerate(prepared(read, range(3), gpu)):
        pair = batch["pair"]
        assert pair.rows == [n] and batch["none"] is None
        assert to_device(pair.inputs, gpu).tolist() == [n, n]
        to_device(pair.weight, gpu)
    assert len(pinned) == len(copied) == 6


def test_an_error_in_the_thread_reaches_the_loop():
    def prepare(n):
        raise OSError(f"cannot read batch {n}")

    with pytest.raises(OSError, match="cannot read batch 0"):
        list(prepared(prepare, range(3), torch.device("cuda")))


def test_results_read_together_are_in_order():
    parts = [torch.full((2, 3), float(n)) for n in range(5)]
    assert read_together(iter(parts))[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]

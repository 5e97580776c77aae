"""Models as files: what they hold, what they refuse, and that the runtime computes what torch users see, bit for bit."""

from __future__ import annotations

import copy
import csv
import gc
import json
import pickle
import subprocess
import sys
import textwrap
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import resfuse
from resfuse import runtime
from resfuse.bench.models import torchvision_models

ROOT = Path(__file__).parent.parent.parent


def small(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = resfuse.models.ResNet("basic", [1, 1], width=8, num_classes=5, stem="cifar").eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return model.to(dtype)


def images(batch: int = 3, height: int = 17, width: int = 20, last: bool = False) -> torch.Tensor:
    x = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last) if last else x


def saved(tmp_path: Path, fast: nn.Module, example: Any, **options: Any) -> Path:
    path = tmp_path / "model.resfuse"
    resfuse.save(fast, path, example, **options)
    return path


def assert_same_bits(ours: np.ndarray, expected: torch.Tensor) -> None:
    assert ours.shape == tuple(expected.shape)
    expected = expected.contiguous()
    if expected.dtype in (torch.bfloat16, torch.float16) and ours.dtype == np.float32:
        expected = expected.float()  # 16 bits are exact in it
    assert ours.tobytes() == expected.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", ["fp32", "int8", "bf16", "fp16", "computes bf16", "computes fp16"])
def test_runtime_gives_the_bits_of_the_fused_model(tmp_path: Path, kind: str, last: bool) -> None:
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = dtypes.get(kind.split()[-1], torch.float32)
    model = small(torch.float32 if kind.startswith("computes") else dtype)
    if kind == "int8":
        fast = resfuse.quantize(model, [images()])
    else:
        fast = resfuse.fuse(model, dtype=dtype if kind.startswith("computes") else None)
    x = images(last=last)
    given = x if model.fc.weight.dtype == torch.float32 else x.to(dtype)
    path = saved(tmp_path, fast, given)
    loaded, ours = resfuse.load(path), runtime.load(path, threads=2)
    assert ours.dtype == {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}[dtype]
    for batch in (3, 1):
        with torch.no_grad():
            expected = fast(given[:batch])
            assert torch.equal(loaded(given[:batch]), expected)
        # 16-bit inputs are exact in float32, and rounded to the same again.
        assert_same_bits(ours(given[:batch].float().numpy()), expected)
    if kind == "fp16":
        assert ours(given.numpy()).dtype == np.float16
        with torch.no_grad():
            assert_same_bits(ours(given.numpy()), fast(given))


def test_bfloat16_arrays_of_ml_dtypes(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    fast, x = resfuse.fuse(small(torch.bfloat16)), images().bfloat16()
    y = runtime.load(saved(tmp_path, fast, x))(x.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    assert y.dtype == ml_dtypes.bfloat16
    with torch.no_grad():
        assert np.array_equal(y.view(np.int16), fast(x).view(torch.int16).numpy())


class Kinds(nn.Module):
    """Several outputs, functions behind the program, computed weights, and most layer kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.norm = nn.GroupNorm(2, 16)
        self.down = nn.Conv2d(16, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        x = F.pad(self.stem(image), (0, 1, 1, 0))
        weight = (self.conv.weight - self.conv.weight.mean()) * 2.0
        y = torch.cat([F.max_pool2d(x, 3, 1, 1), F.silu(F.conv2d(x, weight, self.conv.bias, padding=1, groups=2))], 1)
        y = self.down(F.relu(self.norm(y))) + x
        up = F.interpolate(F.avg_pool2d(y, 2), size=y.shape[2:], mode="bilinear")
        logits = self.fc((y * up).mean((2, 3)))
        return {"map": up, "mask": up.argmax(1), "softmax": up.softmax(1), "logits": logits,
                "class": logits.argmax(-1), "log": F.log_softmax(logits, dim=1), "each": torch.sigmoid(logits)}  # fmt: skip


def test_outputs_by_name_and_functions_behind_the_program(tmp_path: Path) -> None:
    fast = resfuse.fuse(Kinds().eval())
    path = saved(tmp_path, fast, images())
    ours, loaded = runtime.load(path), resfuse.load(path)
    with torch.no_grad():
        expected, again = fast(images()), loaded(images())
    assert ours.outputs == list(expected)
    assert [i.name for i in ours.inputs] == ["image"]
    results = ours(images().numpy())
    for name, value in expected.items():
        assert torch.equal(again[name], value), name
        if name in ("softmax", "log", "each"):
            np.testing.assert_allclose(results[name], value.numpy(), rtol=1e-5, atol=1e-6)
        else:
            assert_same_bits(results[name], value)
    some = ours.run(["class", "map"], {"image": images().numpy()})
    assert_same_bits(some[0], expected["class"])
    assert_same_bits(some[1], expected["map"])


@pytest.mark.parametrize("threads", [1, 2])
def test_strides_batches_and_sizes(tmp_path: Path, threads: int) -> None:
    fast = resfuse.fuse(small())
    ours = runtime.load(saved(tmp_path, fast, images()), threads=threads)
    assert ours.threads == threads
    x = images(4, 21, 18)
    views = [x, x[:, :, ::2], x[::2, :, :, 1:9], x.flip(1)[..., :7], x.transpose(2, 3), x[:0], x.expand(4, 3, 21, 18)]
    for view in views:
        with torch.no_grad():
            expected = fast(view)
        np.testing.assert_allclose(ours(view.numpy()), expected.numpy(), rtol=1e-5, atol=1e-5)
    backwards = x.numpy()[:, ::-1, :, ::-1]
    with torch.no_grad():
        expected = fast(x.flip(1, 3))
    np.testing.assert_allclose(ours(backwards), expected.numpy(), rtol=1e-5, atol=1e-5)


def test_threads_that_call_at_once_get_the_same_bits(tmp_path: Path) -> None:
    ours = runtime.load(saved(tmp_path, resfuse.fuse(small()), images()), threads=2)
    inputs = [images(1 + i % 3, 12 + i % 4, 16).numpy() for i in range(8)]
    expected = [ours(x).tobytes() for x in inputs]
    fresh = runtime.load(ours.path, threads=2)
    wrong: list[int] = []

    def call(seed: int) -> None:
        for i in range(40):
            place = (i * 3 + seed) % len(inputs)
            if fresh(inputs[place]).tobytes() != expected[place]:
                wrong.append(place)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_parameters_keep_their_names_and_are_seen_when_they_change(tmp_path: Path) -> None:
    model = small()
    loaded = resfuse.load(saved(tmp_path, resfuse.fuse(model), images()))
    own, plain = loaded.state_dict(), model.state_dict()
    assert set(own) == {name for name in plain if not name.endswith("num_batches_tracked")}
    for name, tensor in own.items():
        assert torch.equal(tensor, plain[name])
    with torch.no_grad():
        before = loaded(images())
        for m in (loaded, model):
            m.get_parameter("fc.bias").add_(1.0)
        assert torch.equal(loaded(images()), resfuse.fuse(model)(images()))
        assert not torch.equal(loaded(images()), before)


def test_file_is_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model = small()
    path = saved(tmp_path, resfuse.fuse(model), images(), labels=["a", "b", "c", "d", "e"])
    tensors = safetensors.load_file(path)
    assert torch.equal(tensors["fc.weight"], model.fc.weight)
    # And what that library writes is a model as well.
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    safetensors.save_file(tensors, tmp_path / "again.resfuse", metadata)
    again = runtime.load(tmp_path / "again.resfuse")
    assert again.labels == ["a", "b", "c", "d", "e"]
    assert again(images().numpy()).tobytes() == runtime.load(path)(images().numpy()).tobytes()


def test_int8_weights_are_stored_as_bytes(tmp_path: Path) -> None:
    model = resfuse.models.resnet18(num_classes=10).eval()
    sizes = []
    for fast in (resfuse.fuse(model), resfuse.quantize(model, [images(2, 64, 64)])):
        sizes.append(saved(tmp_path, fast, images(2, 64, 64)).stat().st_size)
    assert sizes[1] < 0.3 * sizes[0]
    ours = runtime.load(tmp_path / "model.resfuse")
    with torch.no_grad():
        assert_same_bits(ours(images(2, 64, 64).numpy()), fast(images(2, 64, 64)))


def test_quantised_graphs_and_reduced_layers(tmp_path: Path) -> None:
    """A layer that stays real beside int8 ones."""
    model = small()
    fast = resfuse.quantize(model, [images()], keep=["layer1.0.conv1"])
    ours = runtime.load(saved(tmp_path, fast, images()))
    with torch.no_grad():
        assert_same_bits(ours(images().numpy()), fast(images()))


class Sized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.conv(x))
        if x.shape[2] % 2:
            y = y[:, :2]
        return y


def test_code_that_asks_for_sizes_takes_the_example_s_alone(tmp_path: Path) -> None:
    fast = resfuse.fuse(nn.Sequential(OrderedDict(a=Sized(), b=nn.Conv2d(2, 3, 1))).eval())
    ours = runtime.load(saved(tmp_path, fast, images(2, 17, 20)))
    assert ours.inputs[0].shape == (None, 3, 17, 20)
    assert ours(images(5, 17, 20).numpy()).shape == (5, 3, 17, 20)
    with pytest.raises(ValueError, match=r"got shape \[2, 3, 18, 20\], want \[N, 3, 17, 20\]"):
        ours(images(2, 18, 20).numpy())
    with pytest.raises(ValueError, match="images of"):
        resfuse.load(tmp_path / "model.resfuse")(images(2, 18, 20))


class Asking(nn.Module):
    """Its code asks for lengths of some dimensions."""

    def __init__(self, dimensions: tuple[int, ...]) -> None:
        super().__init__()
        self.body, self.dimensions = small(), dimensions

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if any(x.shape[d] == 1000 for d in self.dimensions):
            raise ValueError("too long")
        return self.body(x)


def test_code_that_asks_for_channels_takes_any_size(tmp_path: Path) -> None:
    fast = resfuse.fuse(Asking((1, -3)).eval())
    ours = runtime.load(saved(tmp_path, fast, images(2, 17, 20)))
    assert ours.inputs[0].shape == (None, 3, None, None)
    with torch.no_grad():
        assert_same_bits(ours(images(3, 12, 16).numpy()), fast(images(3, 12, 16)))
    with pytest.raises(resfuse.UnsupportedModelError, match="depends on the batch"):
        resfuse.save(resfuse.fuse(Asking((0,)).eval()), tmp_path / "other", images())
    sized = runtime.load(saved(tmp_path, resfuse.fuse(Asking((-1,)).eval()), images(2, 17, 20)))
    assert sized.inputs[0].shape == (None, 3, 17, 20)


def test_hugging_face_modules_in_a_row_are_one_file(tmp_path: Path) -> None:
    torchvision_models()
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(depths=[1, 1], hidden_sizes=[16, 32], embedding_size=8, num_labels=7)
    model = transformers.ResNetForImageClassification(config).eval()
    with pytest.raises(resfuse.UnsupportedModelError, match=r"not fused as a whole: resnet\.embedder"):
        resfuse.save(resfuse.fuse(model), tmp_path / "other", images())
    row = nn.Sequential(model.resnet.embedder, *model.resnet.encoder.stages, model.resnet.pooler, model.classifier)
    ours = runtime.load(saved(tmp_path, resfuse.fuse(row.eval()), images(2, 64, 64)))
    with torch.no_grad():
        expected = model(images(3, 40, 48)).logits
    np.testing.assert_allclose(ours(images(3, 40, 48).numpy()), expected.numpy(), rtol=1e-4, atol=1e-5)


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = small()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.body(x))


class InTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.fft.fft(self.a(x)).real)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = small()

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        y = self.body(x)
        return {"a": {"b": y}, "a.b": y.softmax(1)}


def _train() -> nn.Module:
    return resfuse.fuse(small()).train()


@pytest.mark.parametrize(
    ("make", "options", "error", "text"),
    [
        (small, {}, resfuse.UnsupportedModelError, "is not fused; want what resfuse.fuse returned"),
        (lambda: resfuse.fuse(Parts().eval()), {}, resfuse.UnsupportedModelError, "natively run: normalize"),
        (lambda: resfuse.fuse(InTwo().eval()), {}, resfuse.UnsupportedModelError, "it makes 2 programs"),
        (_train, {}, ValueError, "is in train mode"),
        (lambda: 3, {}, TypeError, "fast: got int"),
        (lambda: resfuse.fuse(small()), {"preprocessing": {}}, TypeError, "preprocessing: got dict"),
        (lambda: resfuse.fuse(small()), {"preprocessing": resfuse.Preprocessing(mean=[0], std=[1])}, ValueError, "got 1 channels, the model takes 3"),
        (lambda: nn.Sequential(resfuse.fuse(small()), nn.Softmax(1)), {}, resfuse.UnsupportedModelError, "not fused as a whole: 0 are"),
        (lambda: resfuse.fuse(small()), {"labels": "abcde"}, TypeError, "labels: got 'abcde', want a list of strings"),
        (lambda: resfuse.fuse(small()), {"labels": [1, 2, 3, 4, 5]}, TypeError, "want a list of strings"),
        (lambda: resfuse.fuse(small()), {"labels": ["a"]}, ValueError, "labels: got 1, the model's first output has 5 channels"),
        (lambda: resfuse.fuse(small()), {"labels": ["a", "b", "c", "d", "\ud800"]}, ValueError, "want printable text"),
        (lambda: resfuse.fuse(small()), {"labels": ["a", "b", "c", "d", "e\0"]}, ValueError, "want printable text"),
        (lambda: resfuse.fuse(small()), {"example": None}, TypeError, "example: got NoneType, want a tensor"),
        (lambda: resfuse.fuse(small()), {"example": (3, 8, 8)}, TypeError, "example: got tuple, want a tensor"),
        (lambda: resfuse.fuse(small()), {"example": np.zeros((1, 3, 8, 8))}, TypeError, "example: got ndarray"),
        (lambda: resfuse.fuse(Twice().eval()), {}, resfuse.UnsupportedModelError, "outputs would be called 'a.b'"),
    ],
)  # fmt: skip
def test_save_refuses(tmp_path: Path, make: Any, options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        resfuse.save(make(), tmp_path / "model.resfuse", **{"example": images(), **options})
    assert not list(tmp_path.iterdir())


def test_saving_replaces_a_file_as_a_whole(tmp_path: Path) -> None:
    path = saved(tmp_path, resfuse.fuse(small()), images())
    first = runtime.load(path)
    before = first(images().numpy())
    other = small()
    nn.init.zeros_(other.fc.weight)
    resfuse.save(resfuse.fuse(other), path, images())
    assert np.array_equal(first(images(2).numpy()), runtime.load(path)(images(2).numpy())) is False
    assert np.array_equal(first(images().numpy()), before)
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: .*nowhere"):
        resfuse.save(resfuse.fuse(small()), tmp_path / "nowhere" / "m.resfuse", images())
    with pytest.raises(IsADirectoryError, match="want a file"):
        resfuse.save(resfuse.fuse(small()), tmp_path, images())
    assert [p.name for p in tmp_path.iterdir()] == ["model.resfuse"]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m: m(), ValueError, "inputs: got 0, want 1"),
        (lambda m: m(np.zeros((1, 3, 8, 8))), TypeError, "input 'x': got dtype float64, want float32"),
        (lambda m: m(np.zeros((1, 3, 8, 8), ">f4")), TypeError, "input 'x': got dtype >f4"),
        (lambda m: m(np.zeros((1, 3, 8, 8), np.float16)), TypeError, "input 'x': got dtype float16, want float32"),
        (lambda m: m(np.zeros((1, 3, 8, 8), np.int64)), TypeError, "input 'x': got dtype int64, want float32"),
        (lambda m: m(np.ma.zeros((1, 3, 8, 8), np.float32)), TypeError, "got a masked array"),
        (lambda m: m.run(None, np.zeros((1, 3, 8, 8), np.float32)), TypeError, "inputs: got ndarray, want a dictionary"),
        (lambda m: m.run("output", {}), TypeError, "outputs: got 'output', want a list"),
        (lambda m: m(np.zeros((1, 4, 8, 8), np.float32)), ValueError, r"got shape \[1, 4, 8, 8\], want \[N, 3, H, W\]"),
        (lambda m: m(np.zeros((3, 8, 8), np.float32)), ValueError, r"got shape \[3, 8, 8\]"),
        (lambda m: m(np.zeros((1, 1, 3, 8, 8), np.float32)), ValueError, "got 5 dimensions, want 4"),
        (lambda m: m(np.zeros((1, 3, 0, 8), np.float32)), ValueError, r"got shape \[1, 3, 0, 8\], want"),
        (lambda m: m(np.zeros(193, np.uint8)[1:].view(np.float32).reshape(1, 3, 4, 4)), ValueError, "multiples of their size"),
        (lambda m: m("image"), TypeError, "got dtype <U5"),
        (lambda m: m.run(None, {"y": np.zeros((1, 3, 8, 8), np.float32)}), ValueError, r"inputs: got \['y'\], want \['x'\]"),
        (lambda m: m.run(["z"], {"x": np.zeros((1, 3, 8, 8), np.float32)}), ValueError, "outputs: got 'z'"),
        (lambda m: runtime.load(m.path, threads=0), ValueError, "threads: got 0, want 1 to 1024"),
        (lambda m: runtime.load(m.path, threads=2**32), ValueError, "threads: got 4294967296, want 1 to 1024"),
        (lambda m: runtime.load(m.path, threads=1.5), TypeError, "threads: got 1.5, want a positive integer"),
        (lambda m: runtime.load(m.path, threads=True), TypeError, "threads: got True"),
        (lambda m: runtime.load(m.path + ".no"), FileNotFoundError, "No such file"),
        (lambda m: runtime.load(Path(m.path).parent), IsADirectoryError, "Is a directory"),
        (lambda m: runtime.load(m.path + "\0x"), ValueError, "null byte"),
    ],
)  # fmt: skip
def test_runtime_refuses(tmp_path: Path, call: Any, error: type[Exception], text: str) -> None:
    model = runtime.load(saved(tmp_path, resfuse.fuse(small()), images()))
    with pytest.raises(error, match=text):
        call(model)
    assert model(np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 5)


def _rewrite(path: Path, change: Any) -> None:
    """The same file with another header."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    description = json.loads(header["__metadata__"]["resfuse"])
    change(header, description)
    header["__metadata__"]["resfuse"] = json.dumps(description)
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda h, d: d.update(version=2), "version: got 2, want 1: a newer resfuse"),
        (lambda h, d: d.update(more=1), "unknown field 'more'"),
        (lambda h, d: d.update(dtype="u8"), "dtype: got u8"),
        (lambda h, d: d.update(dtype="fp7"), "dtype: got 'fp7'"),
        (lambda h, d: d["parameters"].pop(), "parameters: got"),
        (lambda h, d: d["parameters"].__setitem__(0, "nothing"), "parameters: 'nothing'"),
        (lambda h, d: d["inputs"].clear(), "inputs: got 0"),
        (lambda h, d: d["outputs"][0].update(output=1), "output: want the number of an output"),
        (lambda h, d: d["outputs"][0].update(functions=["exec"]), "functions: got 'exec'"),
        (lambda h, d: d["outputs"][0].update(functions=["argmax", "softmax"]), "argmax to be the last"),
        (lambda h, d: d["program"]["layers"][0].update(weight=999), "parameters: got"),
        (lambda h, d: d["program"]["layers"][0].update(kernel_size=[5, 5]), "weight has shape"),
        (lambda h, d: d.update(preprocessing={"size": [8, 8]}), "preprocessing: has no field"),
        (lambda h, d: h["fc.weight"].update(shape=[5, 17]), "data_offsets"),
        (lambda h, d: h["fc.weight"].update(shape=[-5, -16]), "its shape"),
        (lambda h, d: h["fc.weight"].update(dtype="F8"), "got dtype F8"),
        (lambda h, d: h["fc.weight"].update(data_offsets=[0, 1 << 40]), "in the file"),
        (lambda h, d: h["fc.weight"].update(dtype="I32"), "is of type int32"),
        (lambda h, d: h.__setitem__("more", h["fc.weight"]), "one behind the other"),
    ],
)  # fmt: skip
def test_files_that_are_no_models_are_named(tmp_path: Path, change: Any, text: str) -> None:
    path = saved(tmp_path, resfuse.fuse(small()), images())
    _rewrite(path, change)
    for load in (runtime.load, resfuse.load):
        with pytest.raises(ValueError, match=r"model\.resfuse: ") as caught:
            load(path)
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty"),
        (b"short", "5 bytes"),
        (b"PK\x03\x04 a zip file, as torch.save writes them", "no safetensors file"),
        (b"\x02" + bytes(7) + b"{}", "another safetensors file"),
        (b"\x02" + bytes(7) + b"[]", "header: want an object"),
        (b"\x02" + bytes(7) + b"{{", "no JSON"),
        (b"\x04" + bytes(7) + b'{"a', "lies in the file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises((ValueError, OSError), match="other") as caught:
        runtime.load(path)
    assert text in str(caught.value)


def test_a_loaded_model_refuses_training_and_gradients(tmp_path: Path) -> None:
    loaded = resfuse.load(saved(tmp_path, resfuse.fuse(small()), images()))
    with pytest.raises(NotImplementedError, match="inference only"):
        loaded.train()
    with pytest.raises(ValueError, match="requires gradients"):
        loaded(images().requires_grad_())
    with pytest.raises(ValueError, match="inputs: got 2, want 1"):
        loaded(images(), images())
    with pytest.raises(TypeError, match="x: got int, want a tensor"):
        loaded(3)
    assert loaded.eval()(images()).shape == (3, 5)
    assert torch.equal(copy.deepcopy(loaded)(images()), loaded(images()))


def test_a_loaded_model_takes_the_saved_model_s_state_dict(tmp_path: Path) -> None:
    model = small()
    loaded = resfuse.load(saved(tmp_path, resfuse.fuse(model), images()))
    nn.init.normal_(model.fc.weight)
    loaded.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(loaded(images()), resfuse.fuse(model)(images()))


@pytest.mark.filterwarnings("ignore")
def test_a_loaded_model_can_be_traced_and_exported(tmp_path: Path) -> None:
    loaded, x = resfuse.load(saved(tmp_path, resfuse.fuse(small()), images())), images()
    with torch.no_grad():
        expected = loaded(x)
        assert torch.equal(torch.jit.trace(loaded, x)(x), expected)
        assert torch.equal(torch.export.export(loaded, (x,)).module()(x), expected)


def test_copies_of_a_runtime_model(tmp_path: Path) -> None:
    model = runtime.load(saved(tmp_path, resfuse.fuse(small()), images()), threads=1)
    expected, others = (
        model(images().numpy()),
        [copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))],
    )
    del model
    gc.collect()
    for other in others:
        assert np.array_equal(other(images().numpy()), expected)
        assert other.threads == 1


@pytest.mark.parametrize("when", ["in threads", "at exit"])
def test_a_process_ends_while_a_model_computes(tmp_path: Path, when: str) -> None:
    code = """
        import atexit, threading, time, numpy as np
        x, box = np.zeros((2, 3, 32, 32), np.float32), {}
        atexit.register(lambda: box["model"](x))
        from resfuse import runtime
        box["model"] = runtime.load(sys.argv[1])
        def compute():
            while True:
                box["model"](x)
        if sys.argv[2] == "in threads":
            for _ in range(3):
                threading.Thread(target=compute, daemon=True).start()
            time.sleep(0.3)
        """
    python(code, str(saved(tmp_path, resfuse.fuse(small()), images())), when)


def python(code: str, *arguments: str, hide_torch: bool = True) -> str:
    """A process in which torch cannot be imported, as where it is not installed."""
    hide = "import sys\nclass Hide:\n    def find_spec(self, name, path=None, target=None):\n        if name.split('.')[0] == 'torch':\n            raise ModuleNotFoundError('No module named torch', name='torch')\nsys.meta_path.insert(0, Hide())\n"
    program = (hide if hide_torch else "import sys\n") + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_torch(tmp_path: Path) -> None:
    fast = resfuse.fuse(small())
    path = saved(tmp_path, fast, images())
    np.save(tmp_path / "x.npy", images().numpy())
    code = """
        import numpy as np, resfuse, resfuse.runtime
        model = resfuse.runtime.load(sys.argv[1])
        np.save(sys.argv[3], model(np.load(sys.argv[2])))
        assert 'torch' not in sys.modules
        from resfuse.cli.app import app
        try:
            resfuse.fuse
        except ModuleNotFoundError as error:
            print(error)
        """
    assert "torch" in python(code, str(path), str(tmp_path / "x.npy"), str(tmp_path / "y.npy"))
    with torch.no_grad():
        assert_same_bits(np.load(tmp_path / "y.npy"), fast(images()))


def test_the_runtime_imports_no_torch_where_it_is_installed() -> None:
    python("import resfuse.runtime, resfuse.cli.run\nassert 'torch' not in sys.modules", hide_torch=False)


@pytest.mark.parametrize(
    "order", ["import resfuse, torch", "import torch, resfuse", "import resfuse.nn, torch", "from resfuse import *"]
)
def test_operators_are_registered_in_any_order_of_imports(order: str) -> None:
    python(
        f"{order}\nimport resfuse, torch\ntorch.ops.resfuse.program\nresfuse.fuse, resfuse.models, resfuse.nn",
        hide_torch=False,
    )


def test_threads_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, resfuse.fuse(small()), images())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert python("import resfuse.runtime\nprint(resfuse.runtime.load(sys.argv[1]).threads)", str(path)) == "1\n"


def test_a_forked_process_computes_the_same(tmp_path: Path) -> None:
    """As servers that fork their workers do: the child has none of the threads that the parent started."""
    path = saved(tmp_path, resfuse.fuse(small()), images())
    code = """
        import os, numpy as np, resfuse.runtime
        model = resfuse.runtime.load(sys.argv[1], threads=2)
        x = np.ones((3, 3, 20, 20), np.float32)
        y = model(x)
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(model(x), y) and model.threads == 2 else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    assert python(code, str(path)) == "0\n"


def _photograph(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 33, 3), np.uint8)).save(path)


@pytest.mark.parametrize("size", [(16, 16), (20, 12)])
def test_images_as_torchvision_prepares_them(tmp_path: Path, size: tuple[int, int]) -> None:
    torchvision_models()
    from torchvision import transforms

    _photograph(tmp_path / "a.png")
    expected = transforms.Compose([
        transforms.Resize(24), transforms.CenterCrop(size), transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])(Image.open(tmp_path / "a.png"))  # fmt: skip
    ours = runtime.read_image(tmp_path / "a.png", runtime.Preprocessing(size, 24))
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"size": (0, 3)}, {"size": (224, 300)}, {"size": (1.5, 2)}, {"size": 224}, {"resize": 2**70}, {"resize": "a"}, {"mean": [0, 0]},
        {"mean": 0.5}, {"mean": "abc"}, {"std": [1, 1, 0]}, {"std": [1, 1, float("nan")]}, {"interpolation": "nearest"},
    ],
)  # fmt: skip
def test_preprocessing_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{next(iter(options))}.*: got"):
        runtime.Preprocessing(**options)


def test_run_command(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    _photograph(folder / "a.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    preprocessing = resfuse.Preprocessing((16, 16), 18, interpolation="bicubic")
    fast = resfuse.fuse(small())
    path = saved(tmp_path, fast, images(), preprocessing=preprocessing, labels=list("vwxyz"))
    command = "from resfuse.cli import main\nsys.argv[0] = 'resfuse'\nmain()"
    out = python(
        command,
        "run",
        str(path),
        "--images",
        str(folder),
        "--output",
        str(tmp_path / "c.csv"),
        "--arrays",
        str(tmp_path / "out"),
    )
    assert "left out" in out
    with (tmp_path / "c.csv").open() as file:
        (row,) = csv.DictReader(file)
    x = torch.from_numpy(runtime.read_image(folder / "a.png", runtime.load(path).preprocessing))[None]
    with torch.no_grad():
        logits = fast(x)
    p, index = logits.softmax(1).max(1)
    assert (row["image"], row["class"]) == ("a.png", "vwxyz"[int(index)])
    assert float(row["probability"]) == pytest.approx(float(p), rel=1e-4)
    assert_same_bits(np.load(tmp_path / "out" / "a.npz")["output"], logits[0])


def test_server_example(tmp_path: Path) -> None:
    testing = pytest.importorskip("fastapi.testclient")
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import serve_with_fastapi as example
    finally:
        sys.path.pop(0)
    _photograph(tmp_path / "a.png")
    fast = resfuse.fuse(small())
    path = saved(tmp_path, fast, images(), preprocessing=resfuse.Preprocessing((16, 16), 18), labels=list("vwxyz"))
    model = runtime.load(path)
    app = example.make_app(model, model.preprocessing, model.labels, most=4, wait_ms=5.0)
    with testing.TestClient(app) as client:
        answer = client.post("/classify", content=(tmp_path / "a.png").read_bytes())
        assert answer.status_code == 200
        assert client.post("/classify", content=b"no image").status_code == 400
        assert client.get("/statistics").json() == {"batches": 1, "images": 1}
    with torch.no_grad():
        p, index = (
            fast(torch.from_numpy(runtime.read_image(tmp_path / "a.png", model.preprocessing))[None]).softmax(1).max(1)
        )
    assert answer.json()["class"] == "vwxyz"[int(index)]
    assert answer.json()["probability"] == pytest.approx(float(p), rel=1e-4)


def test_versions_agree() -> None:
    assert runtime.version() == resfuse.__version__
    for file in ("pyproject.toml", "packaging/runtime/pyproject.toml"):
        assert f'\nversion = "{resfuse.__version__}"\n' in (ROOT / file).read_text()

"""Global average pooling: the kernel on every ISA, the operator under every transform of torch, the layers."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import resfuse
from resfuse import _core
from resfuse.bench.models import torchvision_models
from resfuse.nn import functional as RF
from resfuse.pooling import FusedPool
from resfuse.runtime.pooling import _DTYPES
from tests.conftest import ISAS

DTYPES = list(_DTYPES)
# Half a unit in the last place of each type, relative.
ROUNDING = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
LAYOUTS = ("contiguous", "channels_last", "permuted", "sliced", "sliced_channels", "expanded", "repeated")

sizes = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 13, 14, 17, 33, 56])
shapes = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(1, 70), sizes, sizes),
    st.tuples(st.integers(1, 3), st.sampled_from([256, 700, 1025, 2048, 2100]), st.integers(1, 8), st.integers(1, 8)),
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(100, 700), st.integers(300, 700)),
)


def make_images(shape: tuple[int, ...], layout: str, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    n, c, h, w = shape

    def randn(*size: int) -> torch.Tensor:
        return (torch.randn(size, generator=generator) + 0.5).to(dtype)

    if layout == "channels_last":
        return randn(n, c, h, w).to(memory_format=torch.channels_last)
    if layout == "permuted":
        order = torch.randperm(4, generator=generator).tolist()
        return randn(*[shape[i] for i in order]).permute([order.index(i) for i in range(4)])
    if layout == "sliced":
        return randn(n, c + 1, h + 2, 2 * w)[:, 1:, 1:-1, ::2]
    if layout == "sliced_channels":
        return randn(n, 2 * c, h + 2, w + 1).to(memory_format=torch.channels_last)[:, ::2, 1:-1, 1:]
    if layout == "expanded":
        return randn(1, c, h, 1).expand(n, c, h, w)
    if layout == "repeated":
        return randn(n, 1, 1, 1).expand(n, c, h, w)
    return randn(n, c, h, w)


def pool_on(isa: str, x: torch.Tensor, threads: int = 2) -> torch.Tensor:
    y = torch.empty(x.shape[:2], dtype=x.dtype)
    _core.global_avg_pool(x.data_ptr(), _DTYPES[x.dtype], x.shape, x.stride(), y.data_ptr(), threads, isa)
    return y


def spread_on(isa: str, grad: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    dx = torch.empty_like(like)
    _core.global_avg_pool_backward(
        grad.data_ptr(), grad.stride(), dx.data_ptr(), _DTYPES[grad.dtype], dx.shape, dx.stride(), 2, isa
    )
    return dx


# ---- the kernel ----


@given(st.sampled_from(ISAS), shapes, st.sampled_from(LAYOUTS), st.sampled_from(DTYPES), st.integers(0, 2**31 - 1))
@settings(max_examples=400)
def test_mean_is_exact_but_for_one_rounding(isa, shape, layout, dtype, seed) -> None:
    x = make_images(shape, layout, dtype, seed)
    exact = x.double().mean((2, 3))
    got = pool_on(isa, x)
    # One rounding of the result, and a few of the sums; torch.float64's own reference has as many.
    sums = 6 * ROUNDING[torch.float64 if dtype == torch.float64 else torch.float32] * x.double().abs().mean((2, 3))
    assert torch.all((got.double() - exact).abs() <= exact.abs() * ROUNDING[dtype] * 1.001 + sums)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 512, 7, 7), (2, 64, 112, 112), (8, 3, 400, 500), (4, 256, 28, 28)])
def test_error_is_not_above_torch(isa: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    x = make_images(shape, layout, dtype, 1)
    exact = x.double().numpy().astype(np.longdouble).mean((2, 3))

    def error(y: torch.Tensor) -> float:
        return float(np.sqrt(np.square(y.flatten(1).double().numpy() - exact).mean() / np.square(exact).mean()))

    ours, theirs = error(pool_on(isa, x)), error(F.adaptive_avg_pool2d(x, 1))
    # Below half a unit in the last place the one rounding of the result is all there is, and who is luckier is chance.
    assert ours <= max(1.05 * theirs, ROUNDING[dtype] / 2), f"ours {ours:.2e}, torch's {theirs:.2e}"


@given(st.sampled_from(ISAS), shapes, st.sampled_from(LAYOUTS), st.sampled_from(DTYPES))
@settings(max_examples=100)
def test_gradient_of_every_pixel(isa, shape, layout, dtype) -> None:
    x = make_images(shape, layout, dtype, 0)
    for grad in (torch.randn(shape[:2]).to(dtype), torch.randn(shape[0], 1).to(dtype).expand(shape[:2])):
        want = (grad.double() / (shape[2] * shape[3])).to(dtype)[:, :, None, None].expand(shape)
        got = spread_on(isa, grad, x)
        assert torch.allclose(got.double(), want.double(), rtol=2 * ROUNDING[dtype], atol=1e-7)
        assert torch.equal(got, got[:, :, :1, :1].expand(shape))


@given(shapes, st.sampled_from(["contiguous", "channels_last", "sliced"]), st.sampled_from(DTYPES))
@settings(max_examples=60)
def test_same_bits_on_any_number_of_threads(shape, layout, dtype) -> None:
    x = make_images(shape, layout, dtype, 3)
    one = pool_on(ISAS[-1], x, threads=1)
    assert all(torch.equal(one, pool_on(ISAS[-1], x, threads=t)) for t in (2, 3, 5))


def test_nan_and_inf(isa: str) -> None:
    for dtype in DTYPES:
        for layout in ("contiguous", "channels_last"):
            x = make_images((2, 40, 7, 7), layout, dtype, 0)
            x[0, 1, 2, 3], x[0, 2, 6, 6], x[1, 39, 0, 0] = float("nan"), float("inf"), float("-inf")
            x[1, 0, 0, 0], x[1, 0, 1, 1] = float("inf"), float("-inf")
            got, want = pool_on(isa, x), x.double().mean((2, 3))
            assert torch.equal(got.isnan(), want.isnan())
            assert torch.equal(got.isinf(), want.isinf())
            assert torch.equal(got[got.isinf()].double(), want[want.isinf()])


def test_every_half_survives(isa: str) -> None:
    """All 65536 values of both 16-bit types, denormals, infinities and NaN included, through load and rounding."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = bits.view(dtype)
        for images in (x.view(16, 4096, 1, 1), x.view(1, 65536, 1, 1), x.view(16, 4096, 1, 1).expand(-1, -1, 2, 4)):
            got = pool_on(isa, images).flatten()
            same = (got == x) | (got.isnan() & x.isnan())
            # A sum of equal numbers may overflow or round in fp32 only at the very ends of bf16's range.
            assert bool(same[x.float().abs() < 4e37].all())
            if images.shape[2] == 1:
                assert bool(same.all())


def test_rounding_to_half_is_to_nearest_even(isa: str) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        scales = 2.0 ** torch.arange(-28, 13).repeat_interleave(200)
        x = (torch.randn(2, scales.numel()) * scales).to(dtype)
        images = x.T.reshape(1, -1, 1, 2).contiguous()  # means of two numbers are often ties
        assert torch.equal(pool_on(isa, images).flatten(), ((x[0].double() + x[1].double()) / 2).to(dtype))


# ---- the operator ----

op = torch.ops.resfuse.global_avg_pool2d.default
op_backward = torch.ops.resfuse.global_avg_pool2d_backward.default


def pool(x: torch.Tensor) -> torch.Tensor:
    return RF.global_avg_pool2d(x, keepdim=False)


def reference(x: torch.Tensor) -> torch.Tensor:
    return x.mean((-2, -1))


def _double(*shape: int, grad: bool = False) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4, 2), (1, 1, 1, 1), (0, 3, 4, 5)])
@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("function", [RF.global_avg_pool2d, op])
def test_gradcheck_of_all_modes(shape: tuple[int, ...], keepdim: bool, function) -> None:
    x = _double(*shape, grad=True)
    assert torch.autograd.gradcheck(
        lambda x: function(x, keepdim), x, check_forward_ad=True, check_batched_grad=True, check_undefined_grad=True
    )
    assert torch.autograd.gradgradcheck(lambda x: function(x, keepdim), x, check_fwd_over_rev=True)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(memory_format: torch.memory_format, keepdim: bool, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 4, 5, dtype=dtype).to(memory_format=memory_format).requires_grad_()
    torch.library.opcheck(op, (x, keepdim), rtol=1e-2, atol=1e-2)
    grad = torch.randn(2, 3, 1, 1, dtype=dtype, requires_grad=True)
    torch.library.opcheck(op_backward, (grad, (2, 3, 4, 5), memory_format is torch.channels_last), rtol=1e-2, atol=1e-2)


def test_opcheck_of_one_image_and_of_none() -> None:
    for x in (torch.randn(3, 4, 5, requires_grad=True), torch.randn(0, 3, 4, 5, requires_grad=True)):
        torch.library.opcheck(op, (x,))


@pytest.mark.parametrize("function", [pool, lambda x: op(x, False)], ids=["functional", "operator"])
def test_function_transforms(function) -> None:
    from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

    x, t = _double(2, 3, 4, 5), _double(2, 3, 4, 5)

    def cube(f):
        return lambda x: f(x).pow(3).sum()

    transforms = [
        lambda f: grad(cube(f))(x),
        lambda f: grad(lambda x: (grad(cube(f))(x) * t).sum())(x),
        lambda f: jvp(f, (x,), (t,))[1],
        lambda f: jvp(lambda x: jvp(cube(f), (x,), (t,))[1], (x,), (t,))[1],
        lambda f: jvp(grad(cube(f)), (x,), (t,))[1],
        lambda f: grad(lambda x: jvp(cube(f), (x,), (t,))[1])(x),
        lambda f: vjp(f, x)[1](torch.ones(2, 3, dtype=torch.float64))[0],
        lambda f: jacrev(f)(x),
        lambda f: jacfwd(f)(x),
        lambda f: hessian(cube(f))(x[:, :, :2, :2]),
        lambda f: vmap(f)(x[None].expand(4, -1, -1, -1, -1) * torch.arange(4)[:, None, None, None, None]),
        lambda f: vmap(f, in_dims=3)(torch.stack([x, t], 3)),
        lambda f: vmap(f)(x),
        lambda f: vmap(grad(cube(f)))(torch.stack([x, t])),
        lambda f: vmap(vmap(f))(torch.stack([x, t])),
    ]
    for i, transform in enumerate(transforms):
        assert torch.allclose(transform(function), transform(reference)), i
    layer = resfuse.nn.GlobalAvgPool2d(keepdim=False)
    assert torch.allclose(functional_call(layer, {}, (x,)), reference(x))


def test_forward_mode_with_dual_tensors() -> None:
    from torch.autograd import forward_ad

    x, t = _double(2, 3, 4, 5), _double(2, 3, 4, 5)
    with forward_ad.dual_level():
        dual = pool(forward_ad.make_dual(x, t))
        assert torch.allclose(forward_ad.unpack_dual(dual).tangent, reference(t))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_graph_breaks(dynamic: bool) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return RF.global_avg_pool2d(x * 2).relu().sum()

    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((2, 3, 4, 5), (4, 3, 7, 6)):
        x = _double(*shape, grad=True)
        compiled(x).backward()
        want = torch.autograd.grad((x * 2).mean((2, 3)).relu().sum(), x)[0]
        assert torch.allclose(x.grad, want)


def test_compile_with_inductor() -> None:
    layer = nn.Sequential(nn.Conv2d(3, 8, 3), resfuse.nn.GlobalAvgPool2d(), nn.Conv2d(8, 4, 1))
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(torch.compile(layer, fullgraph=True)(x), layer(x), atol=1e-5)


def test_export() -> None:
    layer = resfuse.nn.GlobalAvgPool2d()
    batch = torch.export.Dim("batch")
    program = torch.export.export(layer, (torch.randn(2, 3, 4, 5),), dynamic_shapes=({0: batch},))
    assert "resfuse.global_avg_pool2d" in str(program.graph)
    x = torch.randn(5, 3, 4, 5)
    assert torch.equal(program.module()(x), layer(x))


def test_autocast_keeps_the_type_as_torch_does() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 3, 4, 5, dtype=dtype, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            assert RF.global_avg_pool2d(x).dtype == op(x).dtype == F.adaptive_avg_pool2d(x, 1).dtype


def test_fake_and_meta_tensors_have_shapes_only() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for memory_format in (torch.contiguous_format, torch.channels_last):
        real = torch.empty(2, 3, 4, 5, memory_format=memory_format)
        want = RF.global_avg_pool2d(real)
        with FakeTensorMode() as mode:
            fake = RF.global_avg_pool2d(mode.from_tensor(real))
        for got in (fake, RF.global_avg_pool2d(real.to("meta"))):
            assert (got.shape, got.stride(), got.dtype) == (want.shape, want.stride(), want.dtype)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_results_and_gradients_keep_the_memory_format(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 16, 7, 7).to(memory_format=memory_format).requires_grad_()
    y, theirs = RF.global_avg_pool2d(x), F.adaptive_avg_pool2d(x, 1)
    assert y.stride() == theirs.stride()
    y.sum().backward()
    assert x.grad.is_contiguous(memory_format=memory_format)


def test_modes_that_listen_to_the_dispatcher_see_the_operator() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Log():
        RF.global_avg_pool2d(torch.randn(1, 2, 3, 3))
    assert op in seen
    with torch.profiler.profile() as profile:
        RF.global_avg_pool2d(torch.randn(1, 2, 3, 3))
    assert any("resfuse::global_avg_pool2d" in event.name for event in profile.events())


def test_views_that_are_not_their_memory() -> None:
    z = torch.randn(2, 3, 4, 5, dtype=torch.complex64)
    negative = z.conj().imag  # negated lazily
    assert negative.is_neg()
    assert torch.allclose(pool(negative), -z.imag.mean((2, 3)))
    subclass = torch.randn(2, 3, 4, 5).as_subclass(type("Tagged", (torch.Tensor,), {}))
    assert torch.allclose(pool(subclass), reference(subclass))
    with torch.inference_mode():
        x = torch.randn(2, 3, 4, 5)
        assert torch.allclose(pool(x), reference(x))


BAD = [
    ("a list", [[1.0]], TypeError, "got list"),
    ("integers", torch.ones(1, 2, 3, 3, dtype=torch.int64), TypeError, "torch.int64"),
    ("complex", torch.ones(1, 2, 3, 3, dtype=torch.complex64), TypeError, "complex64"),
    ("sparse", torch.ones(1, 2, 3, 3).to_sparse(), TypeError, "sparse"),
    ("quantized", torch.quantize_per_tensor(torch.ones(1, 2, 3, 3), 1.0, 0, torch.qint8), TypeError, "qint8"),
    ("two dimensions", torch.ones(3, 3), ValueError, r"\[3, 3\]"),
    ("five dimensions", torch.ones(1, 2, 3, 3, 3), ValueError, r"want \[N, C, H, W\]"),
    ("no pixels", torch.ones(1, 2, 0, 3), ValueError, "one pixel"),
    ("no channels", torch.ones(1, 0, 2, 3), ValueError, "one channel"),
]


@pytest.mark.parametrize(("x", "error", "text"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
@pytest.mark.parametrize("grad", [False, True])
def test_bad_input(x, error: type[Exception], text: str, grad: bool) -> None:
    if grad and isinstance(x, torch.Tensor) and x.is_floating_point() and not x.is_quantized:
        x = x.clone().requires_grad_()
    with pytest.raises(error, match=text):
        RF.global_avg_pool2d(x)


def test_bad_gradients() -> None:
    for grad, size in ((torch.ones(2, 3), (2, 4, 5, 5)), (torch.ones(2, 3, 4, 4), (2, 3, 4, 4)), (torch.ones(3), (3,))):
        with pytest.raises(ValueError, match="grad: got shape"):
            op_backward(grad, size, False)


# ---- the layers, and what fuse replaces ----


class MeanNet(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn, self.pool, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), pool, nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.fc(torch.flatten(self.pool(torch.relu(self.bn(self.conv(x)))), 1)), 1)


@pytest.mark.parametrize(
    "pool",
    [nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((1, 1)), resfuse.nn.GlobalAvgPool2d(), resfuse.nn.GlobalAvgPool2d(False)],
    ids=["int", "pair", "ours", "ours without keepdim"],
)  # fmt: skip
def test_pools_become_part_of_the_program_and_train(pool: nn.Module) -> None:
    model = MeanNet(pool).eval()
    fast = resfuse.fuse(model)
    x = torch.randn(3, 3, 9, 9)
    with torch.no_grad():
        assert torch.allclose(fast(x), model(x), atol=1e-6)
    rows = resfuse.report(fast).rows
    assert [row.fused for row in rows] == [True] * 3
    assert rows[1].algorithm.startswith("in conv") or rows[1].algorithm.startswith("global_avg_pool")
    assert rows[2].what.endswith("softmax")
    fast.train()
    model.train()
    model(x).square().sum().backward()
    want = model.conv.weight.grad.clone()
    model.zero_grad()
    fast(x).square().sum().backward()
    assert torch.allclose(fast.conv.weight.grad, want, atol=1e-5)
    assert type(model.pool) is type(pool)  # the original is as it was


def test_replaced_pools_can_be_copied_and_pickled() -> None:
    fast = resfuse.fuse(Untraceable().eval())
    assert isinstance(fast.pooler, FusedPool)
    assert isinstance(fast.pooler, nn.AdaptiveAvgPool2d)
    buffer = io.BytesIO()
    torch.save(fast, buffer)
    buffer.seek(0)
    x = torch.randn(2, 3, 9, 9)
    for twin in (copy.deepcopy(fast), torch.load(buffer, weights_only=False)):
        assert isinstance(twin.pooler, FusedPool)
        with torch.no_grad():
            assert torch.equal(twin(x), fast(x))


class Untraceable(nn.Module):
    """As Hugging Face's models: control flow over arguments around blocks that can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.stage = resfuse.models.resnet18(width=8, num_classes=5, stem="cifar").layer1
        self.pooler = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        if x.shape[1] != 3:
            raise ValueError("want 3 channels")
        x = self.pooler(self.stage(self.stem(x)))
        return x if return_features else self.classifier(x)


def test_what_fx_cannot_trace_is_fused_in_parts() -> None:
    model = Untraceable().eval()
    fast = resfuse.fuse(model)
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        assert torch.allclose(fast(x), model(x), atol=1e-6)
    report = resfuse.report(fast)
    assert report.native_calls == 0
    assert report.fused_calls == 2
    fused = [row.part for row in report.fused]
    assert "pooler" in fused
    assert any(part.startswith("stage.") for part in fused)
    assert [row.part for row in report.native] == ["classifier.0", "classifier.1"]
    assert list(fast.state_dict()) == list(model.state_dict())
    assert [row.part for row in resfuse.verify(model, fast, x).rows] == ["stem", "stage", "output"]
    with torch.no_grad():
        features = model.stage(model.stem(x))
    expected = torch.einsum("k,nkhw->nhw", model.classifier[1].weight.detach()[2], features)
    torch.testing.assert_close(resfuse.class_activation_map(model, x, 2), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def declared_operators() -> None:
    """timm and transformers import torchvision, whose operators must be declared first."""
    torchvision_models()


@pytest.mark.usefixtures("declared_operators")
def test_timm_pools() -> None:
    timm_pools = pytest.importorskip("timm.layers")
    for pool_type in ("avg", "fast", "fastavg"):
        for flatten in (False, True):
            pool = timm_pools.SelectAdaptivePool2d(pool_type=pool_type, flatten=flatten)
            model = MeanNet(pool).eval()
            fast = resfuse.fuse(model)
            assert all(row.fused for row in resfuse.report(fast).rows)
            x = torch.randn(3, 3, 9, 9)
            with torch.no_grad():
                assert torch.allclose(fast(x), model(x), atol=1e-6)
            assert torch.allclose(fast.train().pool(x), pool(x), atol=1e-6)


@pytest.mark.usefixtures("declared_operators")
@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
def test_hugging_face_pooler(layer_type: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type=layer_type)
    model = transformers.ResNetForImageClassification(config).eval()
    fast = resfuse.fuse(model)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        got, want = fast(x, output_hidden_states=True), model(x, output_hidden_states=True)
    assert torch.allclose(got.logits, want.logits, atol=1e-5)
    assert all(torch.allclose(g, w, atol=1e-5) for g, w in zip(got.hidden_states, want.hidden_states, strict=True))
    report = resfuse.report(fast)
    assert "resnet.pooler" in [row.part for row in report.fused]
    assert report.native_calls == 0

"""The operator of global average pooling under every transform of torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import resfuse
from resfuse.engine.pooling import _DTYPES
from resfuse.nn import functional as RF

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
@pytest.mark.parametrize("dtype", list(_DTYPES))
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

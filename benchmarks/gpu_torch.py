"""The programs of `benchmarks/programs.py` in torch: channels last, eager or compiled.

The weights of a bfloat16 block are bfloat16, its scale and bias float32; the network runs under
autocast. A forward pass saves nothing for the backward pass. The cotangent of a backward pass is
the output itself.
"""

from collections.abc import Callable
from typing import Any

import jax

from benchmarks import common, op_steps
from benchmarks.common import Run
from benchmarks.peers import Shape
from benchmarks.programs import Sizes


def is_available(compiled: bool) -> bool:
    """Tell whether torch has JAX's device and, if `compiled`, compiles without a C++ compiler."""
    if not common.installed("torch"):
        return False
    import torch

    if jax.default_backend() == "gpu":
        return torch.cuda.is_available()
    return jax.default_backend() == "cpu" and not compiled


def warm(run: Run) -> Run:
    """Drop what was compiled for other programs, and run twice so that everything is compiled."""
    import torch

    torch.compiler.reset()
    run(2)
    return run


def peak(run: Run) -> int | None:
    """Run once and return the peak of newly allocated memory, None on a CPU."""
    import torch

    if _device() == "cpu":
        return None
    torch.cuda.empty_cache()  # JAX needs the memory, too.
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(1)
    return torch.cuda.max_memory_allocated() - before


def normalization(shape: Shape, dtype: str, backward: bool, compiled: bool) -> Run:
    """Normalize alone."""
    x = op_steps.torch_layout(_draw(shape, dtype), channels_last=True)
    scale, bias, stats = _vectors(shape[-1], backward)

    def forward(x: Any, scale: Any, bias: Any) -> Any:
        return _batch_norm(x, stats, scale, bias)

    return _run(forward, (x.requires_grad_(backward), scale, bias), backward, compiled)


def block(kind: str, sizes: Sizes, dtype: str, backward: bool, compiled: bool) -> Run:
    """Normalize between two affine maps, with ReLU: "matmul" or "conv"."""
    from torch.nn import functional

    shape = sizes.conv if kind == "conv" else sizes.matmul
    wide, features = shape[-1], sizes.features
    window = (3, 3) if kind == "conv" else ()
    x = op_steps.torch_layout(_draw((*shape[:-1], features), dtype), channels_last=True)
    # Drawn as (O, H, W, I), viewed as torch's (O, I, H, W), so channels are last in memory.
    first, second = (
        op_steps.torch_layout(_draw((out, *window, into), dtype) / into**0.5, channels_last=True)
        for out, into in ((wide, features), (features, wide))
    )
    scale, bias, stats = _vectors(wide, backward)

    def affine(x: Any, kernel: Any) -> Any:
        if kind == "conv":
            return functional.conv2d(x, kernel, padding=1)
        return functional.linear(x, kernel)

    def forward(x: Any, first: Any, scale: Any, bias: Any, second: Any) -> Any:
        y = _batch_norm(affine(x, first), stats, scale, bias)
        return affine(functional.relu(y), second)

    x, first, second = (v.requires_grad_(backward) for v in (x, first, second))
    return _run(forward, (x, first, scale, bias, second), backward, compiled)


def network(shape: Shape, dtype: str, backward: bool, compiled: bool) -> Run:
    """Train torchvision's ResNet-50 by SGD with momentum."""
    import torch
    import torchvision

    model = torchvision.models.resnet50(weights=None).to(_device())
    model = model.to(memory_format=torch.channels_last).train()
    called = torch.compile(model) if compiled else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images = op_steps.torch_layout(_draw(shape, "float32"), channels_last=True)
    labels = torch.arange(shape[0], device=_device()) % 1000
    half = dtype == "bfloat16"

    def forward() -> Any:
        with torch.autocast(_device(), torch.bfloat16, enabled=half):
            return called(images).float()

    def step() -> None:
        if not backward:
            with torch.no_grad():
                forward()
            return
        torch.nn.functional.cross_entropy(forward(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return _repeat(step)


def _run(forward: Callable[..., Any], arguments: Any, backward: bool, compiled: bool) -> Run:
    import torch

    forward = torch.compile(forward, dynamic=False) if compiled else forward

    def step() -> None:
        y = forward(*arguments)
        if backward:
            torch.autograd.grad(y, arguments, y.detach())

    return _repeat(step)


def _repeat(step: Callable[[], None]) -> Run:
    import torch

    def run(count: int) -> None:
        for _ in range(count):
            step()
        if _device() == "cuda":
            torch.cuda.synchronize()

    return run


def _batch_norm(x: Any, stats: Any, scale: Any, bias: Any) -> Any:
    from torch.nn import functional

    mean, var = stats
    return functional.batch_norm(x, mean, var, scale, bias, True, 0.01, 1e-5)


def _vectors(features: int, backward: bool) -> tuple[Any, Any, list[Any]]:
    import torch

    scale, bias = (
        torch.full((features,), v, device=_device(), requires_grad=backward) for v in (1.5, 0.5)
    )
    return scale, bias, [fill(features, device=_device()) for fill in (torch.zeros, torch.ones)]


def _draw(shape: Shape, dtype: str) -> Any:
    import torch

    torch.manual_seed(0)
    return (0.5 + torch.randn(shape, device=_device())).to(getattr(torch, dtype))


def _device() -> str:
    return "cuda" if jax.default_backend() == "gpu" else "cpu"

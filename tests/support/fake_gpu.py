"""A pretended GPU: tensors that say `cuda:0` while the CPU computes them, and a record of the host's waits.

Code under `FakeGpu` takes every path that it takes on a GPU. An operation on tensors of both devices raises,
as it does there; one for whose result the host would have to wait is noted with the place in the package that
asked for it. Values are real, so results can be compared with those of the CPU. Only the backward pass cannot
run: PyTorch's engine wants a real device.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.cuda.amp import common
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

import cosa_dist
from cosa_dist.lattice import dense_crf, permutohedral

PACKAGE = Path(cosa_dist.__file__).parent
GPU = torch.device("cuda:0")
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
# How often the host waits inside one call of an operation.
WAITS = {
    aten._local_scalar_dense.default: 1,
    aten.nonzero.default: 1,
    aten.masked_select.default: 1,
    aten.repeat_interleave.Tensor: 1,
    aten.equal.default: 1,
    aten._unique2.default: 1,
    aten.unique_dim.default: 1,
    aten.unique_consecutive.default: 1,
    aten.bincount.default: 2,  # the smallest and the largest value
}
SCAN = aten.cumsum.default
# As in the documentation of `torch.use_deterministic_algorithms`.
UNREPEATABLE_GRADIENT = {
    *(aten.upsample_bilinear2d.default, aten.upsample_bicubic2d.default),
    *(aten._upsample_bilinear2d_aa.default, aten._upsample_bicubic2d_aa.default),
    *(aten._adaptive_avg_pool2d.default, aten.adaptive_max_pool2d.default),
    *(aten.reflection_pad2d.default, aten.grid_sampler_2d.default),
}
CACHES = (permutohedral._basis, dense_crf._position_kernel)  # they keep tensors of each device


# What PyTorch asks of a driver that is not there, and the answer.
DRIVER: tuple[tuple[Any, str, Any], ...] = (
    (torch.cuda, "_lazy_init", None),
    (torch.cuda, "is_bf16_supported", True),
    (common, "amp_definitely_not_available", False),
)


class OnGpu(Tensor):
    """A tensor of the pretended GPU; `inner` holds its values."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnGpu:
        with torch.inference_mode(inner.is_inference()):  # a view of a usual tensor is a usual tensor
            made: OnGpu = Tensor._make_wrapper_subclass(
                cls,
                inner.size(),
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=GPU,
            )
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"OnGpu({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        """The values as Python's, which PyTorch refuses to read from a subclass."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: a tensor of the pretended GPU is used outside of it")


def caller() -> str:
    """The function of the package that is running, as `lattice/permutohedral.py: filter`."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            return f"{path.relative_to(PACKAGE)}: {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


class FakeGpu(TorchDispatchMode):
    """Inside, `cuda:0` is there.

    `waits` counts the waits of the host by call site, `unrepeatable` names operations that a real one does
    not repeat bit for bit, or of whose gradients that is true and asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.unrepeatable: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # in inference mode operations come here whole, which autograd has split elsewhere
                return func.decompose(*args, **kwargs)
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        ours = [each for each in tensors if isinstance(each, OnGpu)]
        device = kwargs.get("device")
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        to_gpu = bool(ours) if device is None else torch.device(device).type == "cuda"
        if func in COPIES:
            to_gpu = isinstance(args[0], OnGpu) if func is aten.copy_.default else to_gpu
            self._note_copy(func, args, kwargs, to_gpu)
        elif ours:
            others = [each for each in tensors if not isinstance(each, OnGpu) and each.dim()]
            if others:
                raise RuntimeError(f"{caller()}: {func} mixes cuda:0 and cpu {tuple(others[0].shape)}")
            self._note_wait(func, args)
            learned = any(each.requires_grad for each in ours)
            if (learned and func in UNREPEATABLE_GRADIENT) or (func is SCAN and args[0].is_floating_point()):
                self.unrepeatable.add(f"{func} in {caller()}")
        elif (device is None and not tensors) or not to_gpu:
            return func(*args, **kwargs)
        if func is aten._fused_sdp_choice.default:
            return 0  # attention in its plain form: the fused kernels are the real GPU's
        inner = tree_map_only(OnGpu, lambda each: each.inner, (args, kwargs))
        found = func(*inner[0], **inner[1])
        if not to_gpu:
            return found
        wrapped = tree_map_only(Tensor, lambda each: each if isinstance(each, OnGpu) else OnGpu(each), found)
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if ours else wrapped

    def _note_wait(self, func: Any, args: Any) -> None:
        count = WAITS.get(func, 0)
        if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
            count = sum(each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1])
        if count:
            self.waits[caller()] += count

    def _note_copy(self, func: Any, args: Any, kwargs: Any, to_gpu: bool) -> None:
        """A copy from the GPU always waits; one to it unless it is asked not to."""
        source = args[1] if func is aten.copy_.default else args[0]
        patient = kwargs.get("non_blocking", len(args) > 2 and args[2])
        if isinstance(source, OnGpu) != to_gpu and not (to_gpu and patient):
            self.waits[caller()] += 1


@contextmanager
def fake_gpu() -> Iterator[FakeGpu]:
    """The pretended GPU, with a driver that answers if there is none."""
    mode, lifting = FakeGpu(), torch._C._only_lift_cpu_tensors()
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            # Otherwise autograd asks for the stream of each tensor.
            torch._C._ensureCUDADeviceGuardSet()
            for module, name, answer in DRIVER:
                patch.setattr(module, name, lambda *_, answer=answer, **__: answer)
        for cache in CACHES:
            cache.cache_clear()
        # Lets the mode see `torch.tensor(numbers, device="cuda:0")` as the copy that it is.
        torch._C._set_only_lift_cpu_tensors(True)
        patch.setattr(torch.backends.cudnn, "enabled", False)  # its batch norm is no operation of the CPU
        try:
            with mode:
                yield mode
        finally:
            torch._C._set_only_lift_cpu_tensors(lifting)
            for cache in CACHES:
                cache.cache_clear()


def onto_gpu(module: nn.Module) -> nn.Module:
    """Move a module's parameters and buffers, in place; to be called under the pretended GPU."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(OnGpu(value.detach()), value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = OnGpu(value)
    return module


class OneDevice:
    """What a step needs of an Accelerator; gradients are made up, as there is no backward pass."""

    def __init__(self, device: torch.device, bf16: bool = False) -> None:
        self.device, self.bf16 = device, bf16

    def autocast(self) -> torch.autocast:
        """The context in which networks run."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @contextmanager
    def no_sync(self, network: nn.Module) -> Iterator[None]:
        """One rank has nobody to wait for."""
        yield

    def prepare(self, network: nn.Module) -> Callable[..., Any]:
        """The network as Accelerate prepares it: under autocast, with outputs in float32."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            with self.autocast():
                output = network(*args, **kwargs)
            return type(output)(*(each.float() for each in output))

        return forward

    def backward(self, loss: Tensor) -> None:
        """Give a gradient to every parameter that the loss depends on."""
        seen, waiting = set(), [loss.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            leaf = getattr(node, "variable", None)
            if leaf is not None:
                leaf.grad = torch.full_like(leaf, 1e-3) + (0 if leaf.grad is None else leaf.grad)
                for hook in list((leaf._post_accumulate_grad_hooks or {}).values()):
                    hook(leaf)
            waiting += [each for each, _ in node.next_functions]

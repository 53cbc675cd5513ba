"""The VRAM that a run is computed to need is what it allocates on a device that counts as CUDA's allocator does."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from sessions import new_run

from lorakit.run import ledger
from lorakit.run.fits import AROUND, need
from lorakit.run.rehearsal import Rehearsal
from lorakit.training.loop import Session

pytestmark = pytest.mark.pretended
PX = 256
RUN = {
    "data": {"resolution": PX, "min_bucket_reso": PX, "max_bucket_reso": PX},
    "loop": {"precision": "bf16", "steps": 4, "batch_size": 2},
    "sample": {"prompts": ["girl"], "width": PX, "height": PX, "every_epochs": 0, "every_steps": 2, "steps": 1},
}
MEMORY = {
    "plain": {"gradient_checkpointing": False},
    "recomputed and half offloaded": {"gradient_checkpointing": True, "offload": 0.5},
}
ATTENTION, SILU = F.scaled_dot_product_attention, torch.ops.aten.silu_backward


class Fused(torch.autograd.Function):
    """Attention that keeps what CUDA's kernels keep: q, k, v, the result and a number for each row."""

    @staticmethod
    def forward(ctx, q, k, v):
        y = ATTENTION(q.cpu(), k.cpu(), v.cpu()).to(q.device)
        ctx.save_for_backward(q, k, v, y, torch.zeros(q.shape[:3], device=q.device))
        return y

    @staticmethod
    def backward(ctx, grad):
        q, k, v, _, _ = ctx.saved_tensors
        with torch.enable_grad():
            inputs = [x.cpu().requires_grad_() for x in (q, k, v)]
            grads = torch.autograd.grad(ATTENTION(*inputs), inputs, grad.cpu())
        return tuple(each.to(q.device) for each in grads)


class FusedSilu:
    """The backward pass of SiLU as one kernel."""

    default = SILU.default

    def __call__(self, grad, y):
        return SILU(grad.cpu(), y.cpu()).to(y.device) if y.device.type == "cuda" else SILU(grad, y)


@pytest.fixture
def kernels(monkeypatch):
    """The pretended device has no fused kernels, and lets attention keep all its scores; here it has what CUDA has."""

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if query.device.type == "cuda" and attn_mask is None and not (is_causal or scale or enable_gqa):
            return Fused.apply(query, key, value)
        return ATTENTION(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(torch.ops.aten, "silu_backward", FusedSilu())
    # what only CUDA's own kernels take
    monkeypatch.setattr(ledger, "WORKSPACES", {})


@pytest.mark.parametrize("memory", MEMORY)
def test_the_computed_need_of_each_phase_is_what_it_allocates(family, base, tmp_path, memory, native, kernels):
    model = {"model": {"family": family, "source": str(base)}}
    run = new_run(tmp_path, base, model, RUN, {"memory": MEMORY[memory]}, sizes=((PX, PX),) * 4)
    session = Session(run)
    rehearsal = Rehearsal(session.config, session.precision.dtype, has_flash=True)
    assert not rehearsal.is_usual
    needed = need(session.config, rehearsal)

    def peak(work) -> int:
        gc.collect()
        native.reset_peak()
        work()
        return native.peak() - before

    gc.collect()
    before = native.allocated()
    caching = peak(lambda: list(session.prepare()))
    session.step(1)
    training = peak(lambda: session.step(2))
    sampling = peak(lambda: list(session._sample(2)))
    counted = {"caching": caching, "training": training, "sampling": sampling}
    ratios = {phase: (getattr(needed, phase) - AROUND) / size for phase, size in counted.items()}
    assert all(0.94 < ratio < 1.02 for ratio in ratios.values()), ratios

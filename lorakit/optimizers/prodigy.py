"""Prodigy (Mishchenko & Defazio 2023, arXiv:2306.06101) with one wait for the GPU in a step."""

from __future__ import annotations

import math

import prodigyopt
import torch


class Prodigy(prodigyopt.Prodigy):
    """prodigyopt's optimizer, which itself waits for the GPU twice for every weight; on a CPU it gives the same bits.

    The names are prodigyopt's: d is the estimate of the step size, d0 its first value, p0 are the first weights, s is
    a moving average of the gradients.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Estimate d, then move the weights.

        The first step of a weight, and every one with arguments that are hardly ever set, is prodigyopt's own.
        """
        first, *others = self.param_groups
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        states = [self.state.get(p) for p in weights]
        lr, (beta1, beta2) = first["lr"], first["betas"]
        is_usual = lr and beta1 and first["decouple"] and first["slice_p"] == 1 and not first["fsdp_in_use"]
        if not is_usual or not all(states) or any(group["lr"] != lr for group in others):
            return super().step(closure)
        d, k = first["d"], first["k"] + 1
        beta3 = math.sqrt(beta2) if first["beta3"] is None else first["beta3"]
        dlr = d * lr * (((1 - beta2**k) ** 0.5) / (1 - beta1**k) if first["use_bias_correction"] else 1)
        relative = d / first["d0"]

        grads, flat = [p.grad for p in weights], [p.grad.flatten() for p in weights]
        exp_avg, exp_avg_sq, s = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "s"))
        # how far the weights have come along the gradient
        dots = [torch.dot(g, state["p0"] - p.flatten()) for g, state, p in zip(flat, states, weights, strict=True)]
        torch._foreach_mul_(exp_avg, beta1)
        torch._foreach_add_(exp_avg, grads, alpha=d * (1 - beta1))
        torch._foreach_mul_(exp_avg_sq, beta2)
        torch._foreach_addcmul_(exp_avg_sq, grads, grads, value=d * d * (1 - beta2))
        torch._foreach_mul_(s, beta3)
        torch._foreach_add_(s, flat, alpha=relative * (d if first["safeguard_warmup"] else dlr))

        numbers = torch.stack([*dots, *(one.abs().sum() for one in s)]).tolist()  # the wait
        # added one by one, as prodigyopt does: since Python 3.12 `sum` rounds otherwise
        along, length = 0.0, 0.0
        for dot, total in zip(numbers[: len(weights)], numbers[len(weights) :], strict=True):
            along, length = along + relative * dlr * dot, length + total
        if length == 0:
            return None
        numerator = first["d_numerator"] * beta3 + along
        d_hat = first["d_coef"] * numerator / length
        d_max = max(first["d_max"], d_hat)
        d = min(d_max, (max(d, d_hat) if d == first["d0"] else d) * first["growth_rate"])
        for group in self.param_groups:
            group |= {"d_numerator": numerator, "d_denom": length, "d": d, "d_max": d_max, "d_hat": d_hat, "k": k}
        for state in states:
            state["step"] += 1

        denom = torch._foreach_sqrt(exp_avg_sq)
        torch._foreach_add_(denom, d * first["eps"])
        if first["weight_decay"]:
            torch._foreach_add_(weights, weights, alpha=-first["weight_decay"] * dlr)
        torch._foreach_addcdiv_(weights, exp_avg, denom, value=-dlr)
        return None

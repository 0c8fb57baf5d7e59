"""Optimisers: AdamW from torch, Muon written out; the learning rate; the average of weights."""
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is made orthogonal, so that no direction is much faster than others.

    Jordan et al. 2024; the size of a step as AdamW's (Liu et al. 2025, arXiv 2502.16982). A tensor
    of any rank counts as the matrix of its flatten(1), convolutions too. Matrices of one shape are
    orthogonalised together. torch.optim.Muon does the same sums in bf16, which many CPUs emulate.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1e-3, momentum: float = 0.95,
                 weight_decay: float = 0.01) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self) -> None:
        """One step on all parameters that have a gradient."""
        for group in self.param_groups:
            momentum, decay = group["momentum"], 1 - group["lr"] * group["weight_decay"]
            ps = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in ps]
            buffers = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in ps]
            torch._foreach_lerp_(buffers, grads, 1 - momentum)
            nesterov = torch._foreach_lerp(grads, buffers, momentum)
            torch._foreach_mul_(ps, decay)
            for numbers in self._of_one_shape(ps):
                steps = orthogonal(torch.stack([nesterov[i].flatten(1) for i in numbers]))
                # 0.2 sqrt(longer side): the root mean square of a step of AdamW
                size = 0.2 * group["lr"] * max(steps.shape[1:]) ** 0.5
                parts = [step.view_as(ps[i]) for i, step in zip(numbers, steps)]
                torch._foreach_sub_([ps[i] for i in numbers], parts, alpha=size)

    @staticmethod
    def _of_one_shape(ps: list[nn.Parameter]) -> list[list[int]]:
        """The numbers of the parameters whose matrices have one shape, shape by shape."""
        found: dict[tuple, list[int]] = {}
        for number, p in enumerate(ps):
            found.setdefault(tuple(p.flatten(1).shape), []).append(number)
        return list(found.values())


def orthogonal(x: Tensor, steps: int = 5) -> Tensor:
    """About the orthogonal matrix nearest to x (..., n, m): its singular values come to 0.7 to 1.2.

    Newton-Schulz iterations with the coefficients of Jordan et al. 2024; in bf16 on CUDA.
    """
    if x.shape[-2] > x.shape[-1]:
        return orthogonal(x.mT, steps).mT
    dtype = x.dtype
    if x.is_cuda:
        x = x.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.to(dtype)


def make_optimizers(module: nn.Module, muon: bool = False, betas: tuple[float, float] = (0.9, 0.99),
                    ) -> list[torch.optim.Optimizer]:
    """The optimisers of a module's trainable parameters: AdamW for all of them, or with muon
    AdamW and Muon. Muon is for the matrices of hidden layers: both sides at least 16, and no
    embeddings of tokens."""
    trained = [p for p in module.parameters() if p.requires_grad]
    tables = {id(one.weight) for one in module.modules() if isinstance(one, nn.Embedding)}
    wide, rest = [], []
    for p in trained:
        is_matrix = p.ndim > 1 and min(p.flatten(1).shape) >= 16
        if muon and is_matrix and id(p) not in tables:
            wide.append(p)
        else:
            rest.append(p)
    found: list[torch.optim.Optimizer] = []
    if rest:
        # fused: one kernel for all parameters, and the step counter is never read by the host
        fused = all(p.device.type in ("cpu", "cuda") for p in rest)
        found.append(torch.optim.AdamW(rest, lr=0.0, betas=betas, weight_decay=0.01, fused=fused))
    if wide:
        found.append(Muon(wide, lr=0.0))
    return found


def learning_rate(lr: float, step: int, steps: int, warmup: int) -> float:
    """Linear warm-up to lr, then a cosine to zero at `steps`."""
    warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))


class EMA:
    """Exponential moving average of a module's parameters, on their device.

    decay_s = min((1 + s) / (10 + s), decay), as in diffusers' EMAModel: the first update copies.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the present parameters."""
        step, self.count = self.count, self.count + 1
        decay = min((1 + step) / (10 + step), self.decay) if step else 0.0
        current = [p.detach() for _, p in module.named_parameters()]
        torch._foreach_lerp_(list(self.shadow.values()), current, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's parameters by the averages."""
        for name, p in module.named_parameters():
            p.copy_(self.shadow[name])

"""Naive implementations of both definitions, straight from where they are published. Slow and simple on purpose."""

import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor
from transformers import PreTrainedModel

from loki.models.architectures import mlp_outputs


def probability(model: PreTrainedModel, input_ids: Tensor, target: int) -> Tensor:
    return model(input_ids=input_ids, use_cache=False).logits[:, -1].softmax(-1)[:, target]


def logit(model: PreTrainedModel, input_ids: Tensor, target: int) -> Tensor:
    return model(input_ids=input_ids, use_cache=False).logits[:, -1][:, target]


def argmax(model: PreTrainedModel, prompt: list[int]) -> int:
    with torch.no_grad():
        return int(model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1].argmax())


def captum_scores(
    model: PreTrainedModel,
    prompt: list[int],
    target: int | None = None,
    *,
    steps: int = 7,
    method: str = "riemann_trapezoid",
    quantity=probability,
) -> Tensor:
    """Captum's own LayerIntegratedGradients, one layer at a time, `[L, D]`."""
    target = argmax(model, prompt) if target is None else target
    input_ids = torch.tensor([prompt])
    rows = []
    for output in mlp_outputs(model):
        explainer = LayerIntegratedGradients(lambda ids: quantity(model, ids, target), output.attributed_module)
        attributions = explainer.attribute(
            input_ids, baselines=torch.zeros_like(input_ids), n_steps=steps, method=method
        )
        rows.append(attributions[0, -1].detach())
    return torch.stack(rows)


def paper_scores(
    model: PreTrainedModel,
    prompt: list[int],
    target: int | None = None,
    *,
    steps: int = 7,
    quantity=probability,
) -> Tensor:
    """arXiv 2505.22120, eq. 4-5: z at the last position scaled by k/n, k = 0 .. n-1, one run of the model per step."""
    target = argmax(model, prompt) if target is None else target
    input_ids = torch.tensor([prompt])
    rows = []
    for output in mlp_outputs(model):
        module = output.attributed_module
        seen: list[Tensor] = []
        handle = module.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out.detach()))
        with torch.no_grad():
            model(input_ids=input_ids, use_cache=False)
        handle.remove()
        activation = seen[0][0, -1]
        total = torch.zeros_like(activation)
        for step in range(steps):
            scaled = (step / steps * activation).requires_grad_()

            def put_in(_module, _inputs, out, scaled=scaled):
                return torch.cat([out[:, :-1], scaled[None, None]], dim=1)

            handle = module.register_forward_hook(put_in)
            (gradient,) = torch.autograd.grad(quantity(model, input_ids, target).sum(), scaled)
            handle.remove()
            total += gradient
        rows.append(activation * total / steps)
    return torch.stack(rows)


def sensitivities(model: PreTrainedModel, prompt: list[int], tokens: list[int]) -> Tensor:
    """Squared gradients of sum_t log p(tokens[t] | prompt up to t), summed over positions, one layer at a time."""
    input_ids = torch.tensor([prompt])
    rows = []
    for output in mlp_outputs(model):
        module = output.attributed_module
        seen: list[Tensor] = []
        handle = module.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out.detach()))
        with torch.no_grad():
            model(input_ids=input_ids, use_cache=False)
        handle.remove()
        z = seen[0].clone().requires_grad_()
        handle = module.register_forward_hook(lambda _m, _i, _out, z=z: z)
        predictions = model(input_ids=input_ids, use_cache=False).logits[0].log_softmax(-1)
        total = sum(predictions[position, token] for position, token in enumerate(tokens))
        (gradient,) = torch.autograd.grad(total, z)
        handle.remove()
        rows.append(sum(step**2 for step in gradient.reshape(len(prompt), -1)))
    return torch.stack(rows)

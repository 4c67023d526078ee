import pytest
import torch
from captum.attr._utils.approximation_methods import approximation_parameters
from torch import Tensor
from transformers import PreTrainedModel

from loki.kva import AttributionSettings
from loki.kva.captum_engine import CaptumAttributor
from loki.models.architectures import mlp_outputs
from tests.kva import naive
from tests.tiny_models import ODD_FAMILIES, tiny_model
from tests.tolerances import assert_close

PROMPT = [5, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "bamba"])
def test_reference_is_captum_as_published(family: str) -> None:
    model = tiny_model(family)
    with CaptumAttributor(model, AttributionSettings(steps=4)) as attributor:
        (found,) = attributor.attribute([PROMPT], [None])
    assert_close(found.scores, naive.captum_scores(model, PROMPT, steps=4))


@pytest.mark.parametrize("family", ["llama", "gemma2", "bamba"])
def test_reference_of_the_paper_definition(family: str) -> None:
    model = tiny_model(family)
    with CaptumAttributor(model, AttributionSettings(definition="paper")) as attributor:
        (found,) = attributor.attribute([PROMPT], [3])
    assert_close(found.scores, naive.paper_scores(model, PROMPT, 3))


def path_scores(model: PreTrainedModel, definition: str) -> Tensor:
    """Both definitions for one prompt, with the path written into whatever the MLP puts out, `[L, D]`."""
    ids, zeros = torch.tensor([PROMPT]), torch.zeros(1, len(PROMPT), dtype=torch.long)
    sizes, alphas = approximation_parameters("riemann_trapezoid" if definition == "captum" else "riemann_left")
    target = naive.argmax(model, PROMPT)
    rows = []
    for output in mlp_outputs(model):
        module, hidden = output.attributed_module, []

        def see(_module, _inputs, out, hidden=hidden):
            hidden.append((out[0] if isinstance(out, tuple) else out).detach().clone().reshape(len(PROMPT), -1))

        handle = module.register_forward_hook(see)
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
            model(input_ids=zeros, use_cache=False)
        handle.remove()
        start = hidden[1] if definition == "captum" else torch.cat([hidden[0][:-1], 0 * hidden[0][-1:]])
        total = torch.zeros_like(start)
        for size, alpha in zip(sizes(7), alphas(7), strict=True):
            point = (start + alpha * (hidden[0] - start)).requires_grad_()

            def put_in(_module, _inputs, out, point=point):
                first = out[0] if isinstance(out, tuple) else out
                placed = point.reshape(first.shape).clone()
                return (placed, *out[1:]) if isinstance(out, tuple) else placed

            handle = module.register_forward_hook(put_in)
            total += size * torch.autograd.grad(naive.probability(model, ids, target).sum(), point)[0]
            handle.remove()
        rows.append((total * (hidden[0] - start))[-1])
    return torch.stack(rows)


@pytest.mark.parametrize("definition", ["captum", "paper"])
@pytest.mark.parametrize("family", ODD_FAMILIES)
def test_odd_outputs(family: str, definition: str) -> None:
    model = tiny_model(family)
    with CaptumAttributor(model, AttributionSettings(definition=definition)) as attributor:
        (found,) = attributor.attribute([PROMPT], [None])
    assert found.scores.shape == (3, 32)
    assert_close(found.scores, path_scores(model, definition))

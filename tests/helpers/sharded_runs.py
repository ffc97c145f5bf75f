"""What the two processes of a parallel model run: plans of every method, and a training step."""

from typing import Any

from torch import Tensor

from vtfast import Prune

# Every built-in method, scored by the layer before and by a layer that has not run yet.
PLANS: dict[str, Any] = {
    "divprune+random": "divprune+random",
    "fastv": "fastv",
    "fastv+vtw": "fastv+vtw",
    "dart": "dart",
    "dart+random": "dart+random",
    "pyramiddrop": "pyramiddrop",
    "at-layer-0": [Prune(0, "topk", 0.6), Prune(3, "uniform", 0.3)],
    "dart-at-layer-0": [Prune(0, "dart", 0.6), Prune(3, "diversity", 0.3)],
}


def labels_of(inputs: dict[str, Tensor]) -> Tensor:
    """Labels for the last four tokens."""
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    return labels


def gradients(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole gradients by name, and the loss, of one training step."""
    model.train()
    model.zero_grad()
    loss = model(**inputs, labels=labels_of(inputs), use_cache=False).loss
    loss.backward()
    found = {"loss": loss.detach()}
    for name, weight in model.named_parameters():
        gradient = weight.grad
        if gradient is not None:
            found[name] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return {name: value.clone() for name, value in found.items()}


def largest(a: Tensor, b: Tensor) -> float:
    """The largest difference between two tensors of one shape."""
    assert a.shape == b.shape
    return (a - b).abs().max().item()

"""The Lovász-softmax loss, a surrogate of 1 − IoU (arXiv 1705.08790), one class at a time.

The errors of a class are sorted over all pixels, so this loss is no sum of bands. But a class needs only its own logits at the
labels' resolution, and the softmax's denominators, one value a pixel. The gradient is computed with the loss, because both need
the sorted errors: it is as small as the network's logits, and is all that is kept for the backward pass.
"""

import torch
from torch import Tensor

from .loss_bands import bands, upsampled
from .upsampling import working_dtype

IGNORED = -1  # no class, whatever the ignore index


def lovasz_softmax(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """The mean of the Lovász losses of the classes that occur, each over all labelled pixels of the batch together.

    Args:
        logits: (batch, num_labels, h, w); they are resized to the labels' size bilinearly.
        labels: int64 (batch, height, width), class ids or `ignore_index`.

    Returns:
        A scalar; 0 where no pixel is labelled.
    """
    labels = labels.masked_fill(labels == ignore_index, IGNORED)
    if torch.compiler.is_compiling():
        return _whole_lovasz(logits, labels)
    return _LovaszByClass.apply(logits, labels)[0]


def _whole_lovasz(logits: Tensor, labels: Tensor) -> Tensor:
    """All classes at once, with all logits upsampled."""
    probability = upsampled(logits, labels.shape[-2:]).softmax(1).movedim(1, 0).flatten(1)
    labels = labels.flatten()
    is_class = labels == torch.arange(len(probability), device=labels.device)[:, None]
    errors = _errors(probability, is_class, labels != IGNORED)
    slopes = _slopes(errors.detach(), is_class)
    is_present = is_class.any(1)
    losses = (errors.clamp(min=0) * slopes).sum(1)
    return (losses * is_present).sum() / is_present.sum().clamp(min=1)


class _LovaszByClass(torch.autograd.Function):
    """The loss and its gradient to the logits."""

    @staticmethod
    def forward(logits, labels):
        return _loss_and_gradient(logits, labels)

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, labels = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(logits, labels, output[1])
        ctx.save_for_forward(logits, labels)

    @staticmethod
    def backward(ctx, gradient, _):
        logits, labels, found = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative was requested
            loss = _whole_lovasz(logits, labels)
            return *torch.autograd.grad(loss, logits, gradient, create_graph=True), None
        return (found * gradient).to(logits.dtype), None

    @staticmethod
    def jvp(ctx, direction, *_):
        logits, labels = ctx.saved_tensors
        found = torch.func.jvp(lambda logits: _whole_lovasz(logits, labels), (logits,), (direction,))[1]
        return found, None


def _loss_and_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Class by class. With d_k = ∂loss/∂p_k, the softmax's gradient is p_k (d_k − Σ_c p_c d_c): the sum needs all classes, so its
    part follows in a second pass, which needs no sorting."""
    dtype, num_labels = working_dtype(logits.dtype), logits.shape[1]
    counts = torch.stack([(labels == class_id).sum() for class_id in range(num_labels)])
    share = (counts > 0).to(dtype) / (counts > 0).sum().clamp(min=1)
    # Sorting takes most of the time. A CPU sorts no class that does not occur and no pixel whose slope is 0; an accelerator would
    # have to be waited for.
    on_cpu = logits.device.type == "cpu"
    classes, slopes_of = (counts.nonzero().flatten().tolist(), _nonzero_slopes) if on_cpu else (range(num_labels), _slopes)
    log_sum = _log_sum_exp(logits, labels)
    losses, gradient = logits.new_zeros(num_labels, dtype=dtype), torch.zeros_like(logits, dtype=dtype)
    total = torch.zeros_like(log_sum)  # Σ_c p_c d_c
    for class_id in classes:
        probability = _probability(logits, class_id, log_sum)
        is_class = labels == class_id
        errors = _errors(probability.flatten(), is_class.flatten(), (labels != IGNORED).flatten())
        slopes = slopes_of(errors, is_class.flatten()) * share[class_id]
        losses[class_id] = (errors.clamp_(min=0) * slopes).sum()
        slopes = slopes.view_as(probability).mul_(labels != IGNORED)
        part = torch.where(is_class, -slopes, slopes).mul_(probability)
        total += part
        gradient[:, class_id] = _downsampled(part, logits, class_id)
    for class_id in range(num_labels):
        gradient[:, class_id] -= _downsampled(_probability(logits, class_id, log_sum).mul_(total), logits, class_id)
    return losses.sum(), gradient


def _log_sum_exp(logits: Tensor, labels: Tensor) -> Tensor:
    """The logarithm of the softmax's denominator for each pixel, (batch, height, width)."""
    found = torch.empty_like(labels, dtype=working_dtype(logits.dtype))
    for band in bands(logits, labels):
        found[band.labels] = band.upsample(logits[band.logits], labels.shape[-1]).logsumexp(1)
    return found


def _probability(logits: Tensor, class_id: int, log_sum: Tensor) -> Tensor:
    """(batch, height, width)"""
    return upsampled(logits[:, class_id : class_id + 1], log_sum.shape[-2:])[:, 0].sub_(log_sum).exp_()


def _downsampled(gradient: Tensor, logits: Tensor, class_id: int) -> Tensor:
    """The gradient to one class's logits (batch, h, w), from that to the upsampled ones (batch, height, width)."""
    with torch.enable_grad():
        one = logits[:, class_id : class_id + 1].detach().to(gradient.dtype).requires_grad_()
        wide = upsampled(one, gradient.shape[-2:])
    return torch.autograd.grad(wide, one, gradient.unsqueeze(1))[0][:, 0]


def _errors(probability: Tensor, is_class: Tensor, labelled: Tensor) -> Tensor:
    """How far probabilities are from the truth, 0 to 1; −1 for ignored pixels, so that they are the last when sorted."""
    return torch.where(is_class, 1 - probability, probability).where(labelled, -torch.ones_like(probability))


def _slopes(errors: Tensor, is_class: Tensor) -> Tensor:
    """For each pixel, the step of 1 − IoU as it becomes wrong after all pixels with larger errors; (…, pixels).

    Algorithm 1 of the paper, but a fraction of whole numbers instead of a difference of two nearly equal IoUs. In float32 the
    difference would be mostly rounding when there are millions of pixels.
    """
    order = errors.sort(dim=-1, descending=True).indices
    ordered = is_class.gather(-1, order)
    of_class = ordered.cumsum(-1)  # so many pixels of the class, and so many others, are wrong
    others = torch.arange(1, errors.shape[-1] + 1, device=errors.device) - of_class
    size = is_class.sum(-1, keepdim=True)
    union, missed = (size + others).to(errors.dtype), (size - of_class).to(errors.dtype)
    # A pixel of the class makes the intersection smaller by one, another pixel the union larger by one.
    steps = torch.where(ordered, 1 / union.clamp(min=1), missed / (union * (union - 1)).clamp(min=1))
    return torch.zeros_like(errors).scatter(-1, order, steps)


def _nonzero_slopes(errors: Tensor, is_class: Tensor) -> Tensor:
    """`_slopes` of one class that occurs, (pixels). Once all pixels of the class are wrong, 1 − IoU is 1, and no further pixel
    changes it: others with smaller errors than any pixel of the class are not sorted. In a trained network they are many."""
    before = (errors >= errors[is_class].min()).nonzero().flatten()
    return torch.zeros_like(errors).scatter_(0, before, _slopes(errors[before], is_class[before]))

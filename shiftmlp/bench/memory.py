"""What autograd keeps from a forward for its backward."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def kept_bytes(forward: Callable[[], Tensor], given: Iterable[Tensor]) -> int:
    """Bytes of the memory that one call saves, besides that of the tensors it was given."""
    known = {tensor.untyped_storage().data_ptr() for tensor in given}
    kept = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(save, lambda saved: saved):
        forward()
    return sum(storage.nbytes() for storage in kept.values())

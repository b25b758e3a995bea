"""Which kernel serves each op of ours that is called in a block."""

from torch.utils._python_dispatch import TorchDispatchMode

from ..ops import OPS


class Kernels(TorchDispatchMode):
    """Notes the backend of every op called within, and why the others were passed over."""

    def __init__(self):
        super().__init__()
        self.serving: dict[str, str] = {}
        self.passed_over: dict[str, dict[str, str]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "shiftmlp":
            self._note(OPS[func._opname], *args)
        return func(*args, **(kwargs or {}))

    def _note(self, op, *args) -> None:
        *inputs, backend = args
        reasons = op.explain(*inputs)
        if backend == "auto":
            backend = next(name for name, reason in reasons.items() if reason is None)
        self.serving[op.name] = backend
        self.passed_over[op.name] = {name: why for name, why in reasons.items() if why}

    @property
    def backends(self) -> str:
        """As in "cuda" or "triton, reference"."""
        return ", ".join(dict.fromkeys(self.serving.values()))

    def only_reference(self) -> bool:
        return set(self.serving.values()) == {"reference"}

    def refusals(self) -> str:
        """Why no kernel but the reference serves, for the forward ops, as one clause."""
        told: dict[str, list[str]] = {}
        for op, reasons in self.passed_over.items():
            if self.serving[op] == "reference" and not op.endswith("_backward"):
                why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
                told.setdefault(why, []).append(op)
        return " | ".join(f"{' and '.join(ops)}: {why}" for why, ops in told.items())

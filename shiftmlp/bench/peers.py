"""What a user of a CPU can have for inference today: the weights frozen, the graph optimised.

Each takes an eager function with its tensors by name, and gives a call without arguments that
returns the result. All that can be done before the first image is done by then.
"""

import copy
import io
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

ACTIVATIONS = ("x", "u", "v", "image")
OPSET = 20  # of ONNX: GELU and layer norm are operators of their own


class Bound(nn.Module):
    """A function, or a model, with its weights: a module of the activations alone."""

    def __init__(self, function: Callable, tensors: dict[str, Tensor]):
        super().__init__()
        self.function = function
        self.inputs = [name for name in tensors if name in ACTIVATIONS]
        self.weights = nn.ParameterDict(
            {name: tensors[name].detach() for name in tensors if name not in ACTIVATIONS}
        )

    def forward(self, *activations: Tensor) -> Tensor:
        return self.function(**dict(zip(self.inputs, activations, strict=True)), **self.weights)


def freeze(function: Callable, **tensors: Tensor) -> Callable[[], Tensor]:
    """``torch.compile`` with freezing, which is wholly in force only as inductor's global flag."""
    from torch._inductor import config

    module, activations = _bound(function, tensors)
    call = torch.compile(module, dynamic=False)
    with config.patch(freezing=True), torch.no_grad():
        call(*activations)
    return lambda: call(*activations)


def onnxruntime(function: Callable, **tensors: Tensor) -> Callable[[], Tensor]:
    """Without spinning, as waiting threads would slow down whoever runs next."""
    import numpy
    import onnxruntime

    module, activations = _bound(function, tensors)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        _onnx(module, activations), options, providers=["CPUExecutionProvider"]
    )
    with torch.no_grad():
        result = torch.empty_like(module(*activations), memory_format=torch.contiguous_format)
    binding = session.io_binding()
    for put, ends, given in (
        (binding.bind_input, session.get_inputs(), activations),
        (binding.bind_output, session.get_outputs(), [result]),
    ):
        for end, tensor in zip(ends, given, strict=True):
            put(end.name, "cpu", 0, numpy.float32, tuple(tensor.shape), tensor.data_ptr())

    def call(alive=activations) -> Tensor:  # the binding has their addresses alone
        session.run_with_iobinding(binding)
        return result

    return call


def openvino(function: Callable, **tensors: Tensor) -> Callable[[], Tensor]:
    """In bfloat16 as its precision hint gives it: inputs and result stay float32."""
    import openvino

    module, activations = _bound(function, tensors)
    hint = "bf16" if activations[0].dtype == torch.bfloat16 else "f32"
    activations = [tensor.float() for tensor in activations]
    core = openvino.Core()
    model = core.read_model(io.BytesIO(_onnx(copy.deepcopy(module).float(), activations)))
    options = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    for index, tensor in enumerate(activations):
        request.set_input_tensor(index, openvino.Tensor(tensor.numpy(), shared_memory=True))

    result = torch.from_numpy(request.get_output_tensor().data)

    def call(alive=activations) -> Tensor:  # shared with the request
        request.infer()
        return result

    return call


def _bound(function: Callable, tensors: dict[str, Tensor]) -> tuple[nn.Module, list[Tensor]]:
    module = Bound(function, tensors).eval()
    return module, [tensors[name].detach() for name in module.inputs]


def _onnx(module: nn.Module, activations: list[Tensor]) -> bytes:
    """By the older exporter, which needs no further package."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.register_custom_op_symbolic("aten::mT", _swap_last_two, OPSET)
        torch.onnx.export(module, tuple(activations), file, dynamo=False, opset_version=OPSET)
    return file.getvalue()


def _swap_last_two(graph, x):
    """``Tensor.mT``, which that exporter does not know."""
    *leading, row, column = range(x.type().dim())
    return graph.op("Transpose", x, perm_i=[*leading, column, row])


# Each with the dtypes that it has fast paths for.
PEERS = {
    "freeze": (freeze, (torch.float32, torch.bfloat16, torch.float16)),
    "onnxruntime": (onnxruntime, (torch.float32,)),
    "openvino": (openvino, (torch.float32, torch.bfloat16)),
}

"""Reads a classifier's .onnx file from anywhere: bounded, checked, raised to one opset. Nothing in it is executed."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto
from onnx.inliner import inline_local_functions

from psys.errors import PsysError, reason_of
from psys.files import read_bounded
from psys.onnx.graph import Graph, graph_of

OLDEST, NEWEST = 7, 23
"""Opsets that are read."""
OPSET = 20
"""Older files are raised to this opset; what later ones added is in the table of operators."""
LARGEST = 2**31 - 2**20
"""Bytes of a model with its weights: protobuf's own limit is 2 GiB."""
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
_SMALL_INTEGERS = {"INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2"}
_EIGHT_BITS = {"FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT4E2M1"}
_QUANTISED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
_DETECTION = {"NonMaxSuppression", "RoiAlign", "MaxRoiPool"}
_STANDARD = ("", "ai.onnx")


def read_graph(path: Path) -> Graph:
    """The part of the file that computes class scores from images.

    Raises PsysError, in one line, for a file that is no ONNX model, is larger than LARGEST, has weights outside of its
    own folder or with NaN or of integers, has another opset or domain, or is no classifier of images.
    """
    try:
        return _read(path)
    except PsysError as error:
        raise PsysError(f"{path}: {error}") from None


def _read(path: Path) -> Graph:
    model = _parse(path)
    _check_opset(model)
    _load_external_data(model, path)
    if model.functions:
        model = inline_local_functions(model)
    output = _class_scores(model)
    _prune(model, output)
    trained = _drop_training_outputs(model)
    _check_nodes(model)
    _check_weights(model)
    _check_input(model)
    _declare_output(model)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise PsysError(f"the ONNX checker refuses the file: {_first_line(error)}") from None
    model = _raise_opset(model)
    batch = _release_batch(model)
    _name_weights_once(model)
    graph = graph_of(_fold_constants(model), output)
    graph.input_shape[0] = batch
    for node in graph.nodes:
        if trained & set(node.outputs):
            node.attributes["training_mode"] = 1
    return graph


def _drop_training_outputs(model: ModelProto) -> set[str]:
    """Leave batch norms one output, as ONNX's converter wants before opset 14; returns those that had more."""
    found = set()
    for node in model.graph.node:
        if node.op_type == "BatchNormalization" and len(node.output) > 1:
            found.add(node.output[0])
            if not any(attribute.name == "training_mode" for attribute in node.attribute):
                del node.output[1:]
    return found


def _parse(path: Path) -> ModelProto:
    try:
        content = read_bounded(path, LARGEST)
    except OSError as error:
        raise PsysError(f"cannot read the model: {error.strerror or reason_of(error)}") from None
    if not content:
        raise PsysError("the file is empty: export the model again")
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except Exception:  # protobuf's exceptions differ between its implementations
        raise PsysError("this is no ONNX model: expected a file that an exporter to ONNX wrote") from None
    if not model.graph.node or not model.opset_import:
        raise PsysError("this is no ONNX model: it has no nodes, or names no opset")
    return model


def _check_opset(model: ModelProto) -> None:
    opset = next((each.version for each in model.opset_import if each.domain in _STANDARD), None)
    if opset is None:
        raise PsysError("the file does not use ONNX's own operators: export the model with opset 20")
    if not OLDEST <= opset <= NEWEST:
        raise PsysError(
            f"opset {opset} is not supported, only {OLDEST} to {NEWEST}: export the model with opset {OPSET}"
        )


def _load_external_data(model: ModelProto, path: Path) -> None:
    """Load weights that lie in other files. Raises PsysError if these are not in the model's own folder."""
    folder = path.resolve().parent
    total = model.ByteSize()
    for tensor in _tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        fields = {each.key: each.value for each in tensor.external_data}
        location = fields.get("location", "")
        file = (folder / location).resolve()
        if not location or os.path.isabs(location) or not file.is_relative_to(folder):
            raise PsysError(f"weight '{tensor.name}' lies outside of the model's folder, in '{location}': refused")
        if not file.is_file():
            raise PsysError(f"weight '{tensor.name}' lies in '{location}', which is not in the folder of the model")
        offset, size = int(fields.get("offset", 0)), file.stat().st_size
        length = int(fields.get("length", size - offset))
        if offset < 0 or length < 0 or offset + length > size:
            raise PsysError(f"'{location}' has {size:,} bytes, but weight '{tensor.name}' lies beyond: copy it again")
        total += length
        if total > LARGEST:
            raise PsysError(f"the model is too large: more than {LARGEST:,} bytes with its weights")
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(folder))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise PsysError(f"cannot read the weights: {_first_line(error)}") from None


def _class_scores(model: ModelProto) -> str:
    """The output that holds class scores: (batch, classes) floats; labels and lists of pairs beside it are left out."""
    outputs = list(model.graph.output)
    if found := sorted({node.op_type for node in model.graph.node} & _DETECTION):
        raise PsysError(f"this is a detector, no classifier: it has the operator {found[0]}")
    producers = {name: node for node in model.graph.node for name in node.output}
    scores = []
    for output in outputs:
        node = producers.get(output.name)
        if node is not None and node.op_type == "ZipMap":  # scikit-learn's list of {class: probability}
            scores.append(node.input[0])
        elif output.type.tensor_type.elem_type in _FLOATS and (len(outputs) == 1 or _rank(output) in (None, 2)):
            scores.append(output.name)
    if not scores:
        shown = ", ".join(f"{output.name} {_dims(output)}" for output in outputs[:4])
        raise PsysError(f"no output holds class scores (batch, classes) as floats; the outputs are {shown}")
    if len(outputs) > 2 and len(scores) != 1:
        raise PsysError(f"{len(outputs)} outputs, of which {len(scores)} could be class scores: this is no classifier")
    return str(scores[0])


def _prune(model: ModelProto, output: str) -> None:
    """Keep only the nodes, initializers and inputs that `output` depends on."""
    needed, kept = {output}, []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed.update(node.input)
            needed.update(name for each in node.attribute if each.HasField("g") for name in _outer_names(each.g))
            kept.append(node)
    info = next((each for each in model.graph.output if each.name == output), None)
    weights = [each for each in model.graph.initializer if each.name in needed]
    names = {each.name for each in weights}
    # Files of IR version 3 name their initializers among the inputs.
    inputs = [each for each in model.graph.input if each.name in needed and each.name not in names]
    info = info or onnx.helper.make_tensor_value_info(output, TensorProto.FLOAT, ("batch", "classes"))
    for field, values in (
        (model.graph.node, kept[::-1]),
        (model.graph.initializer, weights),
        (model.graph.input, inputs),
        (model.graph.output, [info]),
    ):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    used = {node.domain for node in model.graph.node} | {"", "ai.onnx"}
    imports = [each for each in model.opset_import if each.domain in used]
    copies = [type(each).FromString(each.SerializeToString()) for each in imports]
    del model.opset_import[:]
    model.opset_import.extend(copies)
    model.ir_version = max(model.ir_version, 4)


def _check_nodes(model: ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type in _QUANTISED or node.op_type.startswith("QLinear"):
            raise PsysError(
                f"this is a quantised model ({node.op_type} '{node.name}'): integer weights cannot be trained; take "
                "the float model that it was made from"
            )
        if node.domain not in _STANDARD:
            raise PsysError(
                f"node {node.op_type} '{node.name}' is of the domain '{node.domain}', which is not ONNX's own: export "
                "the model with standard operators"
            )
        try:
            onnx.defs.get_schema(node.op_type, NEWEST, "")
        except onnx.defs.SchemaError:
            raise PsysError(f"node '{node.name}': ONNX has no operator {node.op_type}") from None


def _check_weights(model: ModelProto) -> None:
    for tensor in _tensors(model):
        kind = TensorProto.DataType.Name(tensor.data_type)
        elements = int(np.prod(tensor.dims)) if tensor.dims else 1
        if (kind in _SMALL_INTEGERS and elements > 64) or kind in _EIGHT_BITS:
            raise PsysError(
                f"weight '{tensor.name}' has integers or 8 bits ({kind}): it cannot be trained; take the float model"
            )
        if tensor.data_type in _FLOATS and np.isnan(onnx.numpy_helper.to_array(tensor)).any():
            raise PsysError(f"weight '{tensor.name}' holds NaN: its training diverged, or the file is damaged")


def _check_input(model: ModelProto) -> None:
    """Raises PsysError if the file's input is no batch of images."""
    inputs = list(model.graph.input)
    shown = ", ".join(f"{each.name} {_dims(each)}" for each in inputs[:4])
    if len(inputs) != 1:
        raise PsysError(f"one input for images was expected, there are {len(inputs)}: {shown or 'none'}")
    (image,) = inputs
    kind = image.type.tensor_type.elem_type
    if kind not in _FLOATS | {TensorProto.UINT8}:
        name = TensorProto.DataType.Name(kind).lower()
        raise PsysError(f"the input {shown} is no image: floats or uint8 were expected, not {name}")
    if _rank(image) not in (2, 4):
        raise PsysError(f"the input {shown} is no batch of images: 4 axes were expected, or 2 for flat images")


def _declare_output(model: ModelProto) -> None:
    """Give an output without a shape one: ONNX's checker wants it, although programs do not."""
    (output,) = model.graph.output
    if _rank(output) is None:
        inferred = onnx.shape_inference.infer_shapes(model).graph.output[0]
        if _rank(inferred) is None:
            inferred = onnx.helper.make_tensor_value_info(output.name, TensorProto.FLOAT, ("batch", "classes"))
        output.CopyFrom(inferred)


def _raise_opset(model: ModelProto) -> ModelProto:
    opset = next(each.version for each in model.opset_import if each.domain in _STANDARD)
    if opset >= OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter is C++, its errors share no class
        raise PsysError(
            f"the file cannot be raised from opset {opset} to {OPSET}: {_first_line(error)}; export it with {OPSET}"
        ) from None


def _release_batch(model: ModelProto) -> int | None:
    """Declare the batch size free, so that nothing is folded that depends on it; the size that was declared."""
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    declared = batch.dim_value if batch.dim_value > 0 else None
    batch.dim_param = "batch"
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return declared


def _name_weights_once(model: ModelProto) -> None:
    """Leave out Identity nodes behind weights, of which folding would make copies: the weights would not be shared."""
    names = {each.name: each.name for each in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
        if node.op_type == "Identity" and node.input[0] in names and node.output[0] != model.graph.output[0].name:
            names[node.output[0]] = node.input[0]
        else:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _fold_constants(model: ModelProto) -> ModelProto:
    # Imported here: the package takes a second to import.
    from onnxscript.optimizer import fold_constants

    try:
        fold_constants(model)
    except Exception as error:  # of the reference implementation of any operator
        raise PsysError(f"a constant of the model cannot be computed: {_first_line(error)}") from None
    return model


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """All weights: initializers, and the values of nodes."""
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _outer_names(graph: onnx.GraphProto) -> Iterator[str]:
    """The names that a subgraph reads, some of which are from outside."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _outer_names(attribute.g)


def _rank(value: ValueInfoProto) -> int | None:
    tensor = value.type.tensor_type
    return len(tensor.shape.dim) if tensor.HasField("shape") else None


def _dims(value: ValueInfoProto) -> str:
    dims = value.type.tensor_type.shape.dim
    return f"({', '.join(str(dim.dim_value or dim.dim_param or '?') for dim in dims)})"


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

"""Whole classifiers from their files: outputs of ONNX Runtime, weights that train, and files that are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from psys.augment.batch import normalise
from psys.data.sample import read_sample
from psys.errors import PsysError
from psys.onnx.folded import measure
from psys.onnx.import_ import import_classifier, import_network
from tests.support.images import pixels_of
from tests.support.onnx_graphs import model_of, run_onnx

Array = NDArray[Any]
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def weight(*shape: int) -> Array:
    return (0.3 * np.random.default_rng(len(shape)).standard_normal(shape)).astype(np.float32)


def pixels(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def classifier(
    text: str, constants: dict[str, Array], shape: tuple[int | str, ...] = ("n", 3, 8, 8), **options: Any
) -> onnx.ModelProto:
    """A model of nodes in ONNX's text format."""
    nodes = onnx.parser.parse_graph(f"g (float x) => (float y) {{ {text} }}").node
    return model_of(list(nodes), constants, shape, **options)


def plain(**options: Any) -> onnx.ModelProto:
    """A convolution, and a linear layer for five classes."""
    constants = {"w": weight(4, 3, 3, 3), "b": weight(4), "v": weight(5, 4), "c": weight(5)}
    text = "h = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(h) g = GlobalAveragePool(r) f = Flatten(g) "
    return classifier(text + "y = Gemm<transB = 1>(f, v, c)", constants, **options)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


class Block(nn.Module):
    """Depthwise and pointwise convolutions with batch norm, squeeze and excitation, and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.point = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.hardswish(self.norm(self.depthwise(x)))
        gate = F.hardsigmoid(self.up(F.silu(self.down(h.mean((2, 3), keepdim=True)))))
        return x + F.relu6(self.point(h * gate))


class Transformer(nn.Module):
    """Patches, a class token, positions, attention with layer norm and GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 5, 16))
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(h.shape[0], -1, -1), h], 1) + self.positions
        q, k, v = self.qkv(self.norm(h)).reshape(h.shape[0], 5, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        h = h + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(h.shape[0], 5, 16))
        h = h + self.mlp(h)
        scores: Tensor = self.head(h[:, 0])
        return scores


class Dense(nn.Module):
    """Concatenated layers with average pooling, and channels shuffled by a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grow, self.norm = (
            nn.Conv2d(3, 8, 3, bias=False),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(16),
        )
        self.block, self.head = Block(), nn.Linear(16 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(self.stem(x))
        h = self.norm(torch.cat([h, self.grow(h)], 1))
        n, c, height, width = h.shape
        h = h.view(n, 2, c // 2, height, width).transpose(1, 2).reshape(n, c, height, width)
        scores: Tensor = self.head(F.avg_pool2d(F.pad(h, (1, 0, 1, 0)), 3, 2, 1).flatten(1)[:, : 16 * 9])
        return scores


def exported(module: nn.Module, path: Path, *, dynamo: bool, opset: int | None, batch: int | None) -> Path:
    module.eval()
    if dynamo:
        shapes = None if batch else ({0: torch.export.Dim("n")},)
        program = torch.onnx.export(
            module, (torch.randn(batch or 2, 3, 8, 8),), dynamo=True, verbose=False, dynamic_shapes=shapes
        )
        assert program is not None
        program.save(path, external_data=True)
    else:
        torch.onnx.export(
            module,
            (torch.randn(batch or 2, 3, 8, 8),),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            dynamic_axes=None if batch else {"x": {0: "n"}},
        )
    return path


def weights_in(path: Path) -> int:
    """Elements of the float weights of a file, running statistics of batch norm left out."""
    graph = onnx.load(path).graph
    statistics = {name for node in graph.node if node.op_type == "BatchNormalization" for name in node.input[3:5]}
    return sum(
        int(np.prod(each.dims)) for each in graph.initializer if each.data_type == 1 and each.name not in statistics
    )


@pytest.mark.parametrize(
    ("module", "dynamo", "opset", "batch"),
    [(Transformer, True, None, None), (Transformer, False, 14, 1), (Dense, False, 9, None), (Dense, False, 17, 1)],
)
def test_exports_of_torch_compute_the_same_and_train(
    module: Callable[[], nn.Module], dynamo: bool, opset: int | None, batch: int | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    path = exported(module(), tmp_path / "model.onnx", dynamo=dynamo, opset=opset, batch=batch)
    network = import_network(path).eval()
    x = pixels(3, 3, 8, 8)
    expected = np.concatenate([run_onnx(path, image[None]) for image in x])
    with torch.no_grad():
        np.testing.assert_allclose(network(torch.from_numpy(x)).numpy(), expected, atol=1e-5)
    trained = sum(p.numel() for p in network.parameters())
    assert 0.95 <= trained / weights_in(path) < 1.05
    scores = network.train()(torch.from_numpy(x))
    gradients = torch.autograd.grad(scores.square().sum(), list(network.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_imported_transformer_is_exported_again(tmp_path: Path) -> None:
    path = exported(Transformer(), tmp_path / "first.onnx", dynamo=False, opset=14, batch=1)
    network = import_network(path)
    again = exported(network, tmp_path / "again.onnx", dynamo=True, opset=None, batch=None)
    x = pixels(3, 3, 8, 8)
    with torch.no_grad():
        np.testing.assert_allclose(run_onnx(again, x), network(torch.from_numpy(x)).numpy(), atol=1e-4)


def test_loss_falls_on_real_images(tmp_path: Path) -> None:
    path = exported(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2), Block(), nn.Flatten(), nn.Linear(72, 5)),
        tmp_path / "m.onnx",
        dynamo=False,
        opset=13,
        batch=1,
    )
    split = read_sample().train
    module, notes = import_classifier(path, 10, (32, 32), MEAN, STD, "keep")
    assert "images of 32 x 32 are resized to its 8 x 8" in notes
    assert "its last layer of 5 classes is replaced by a new one of 10" in notes
    images = normalise(torch.from_numpy(pixels_of(split)[::16].copy()), MEAN, STD)
    labels = torch.from_numpy(np.array(split.labels[::16]))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = F.cross_entropy(module(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 20, 23])
def test_opsets_compute_the_same(opset: int, tmp_path: Path) -> None:
    model, x = plain(opset=opset), pixels(2, 3, 8, 8)
    with torch.no_grad():
        computed = import_network(saved(model, tmp_path)).eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(computed, run_onnx(model, x), atol=1e-5)


def test_channels_last_probabilities_become_scores(tmp_path: Path) -> None:
    text = 't = Transpose<perm = [0, 3, 1, 2]>(x) h = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(t, w) '
    text += "g = GlobalAveragePool(h) s = Squeeze(g, axes) m = MatMul(s, v) a = Add(m, c) y = Softmax(a)"
    constants = {"w": weight(4, 3, 3, 3), "axes": np.array([2, 3]), "v": weight(4, 5), "c": weight(5)}
    path = saved(classifier(text, constants, ("n", 8, 8, 3)), tmp_path)
    module, notes = import_classifier(path, 5, (8, 8), MEAN, STD, "keep")
    assert "its final Softmax is dropped: training works on scores" in notes
    x = torch.from_numpy(pixels(2, 3, 8, 8))
    expected = run_onnx(path, x.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(module.eval()(x).softmax(1).detach().numpy(), expected, atol=1e-6)


def test_half_precision_is_trained_in_float32(tmp_path: Path) -> None:
    constants = {"w": weight(4, 3, 3, 3).astype(np.float16), "v": weight(4, 5).astype(np.float16)}
    text = "h = Conv(x, w) g = GlobalAveragePool(h) f = Flatten(g) y = MatMul(f, v)"
    model = classifier(text, constants, x_type=TensorProto.FLOAT16, output_type=TensorProto.FLOAT16)
    network, x = import_network(saved(model, tmp_path)), pixels(2, 3, 8, 8)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    expected = run_onnx(model, x.astype(np.float16)).astype(np.float32)
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach().numpy(), expected, atol=2e-3)


def test_shared_weight_and_weights_behind_other_nodes_train(tmp_path: Path) -> None:
    text = "h = Conv<pads = [1, 1, 1, 1]>(x, w) i = Identity(w) k = Conv<pads = [1, 1, 1, 1]>(h, i) "
    text += "g = GlobalAveragePool(k) f = Flatten(g) t = Transpose(v) y = MatMul(f, t)"
    path = saved(classifier(text, {"w": weight(3, 3, 3, 3), "v": weight(5, 3)}), tmp_path)
    network, x = import_network(path), pixels(2, 3, 8, 8)
    assert sum(p.numel() for p in network.parameters()) == 81 + 15
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach().numpy(), run_onnx(path, x), atol=1e-5)


def test_own_export_is_imported_again(
    exported: Path, model: nn.Module, images: Tensor, settings: dict[str, Any]
) -> None:
    mean, std = settings["mean"], settings["std"]
    module, notes = import_classifier(exported, 10, (32, 32), mean, std, "keep")
    assert "it takes pixels from 0 to 255" in notes
    x = normalise(images[:8], mean, std)
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(x), model.eval()(x), atol=1e-4, rtol=1e-4)
    model.train()
    assert any("no batch norm, which its exporter has probably folded" in note for note in notes)


def test_training_statistics_are_those_of_batch_norm(tmp_path: Path) -> None:
    text = "h = Conv(x, w) n = BatchNormalization(h, s, b, m, d) g = GlobalAveragePool(n) y = Flatten(g)"
    constants = {"w": weight(4, 3, 3, 3), "s": weight(4), "b": weight(4), "m": weight(4), "d": abs(weight(4))}
    network = import_network(saved(classifier(text, constants), tmp_path))
    assert {name for name, _ in network.named_buffers()} == {"m", "d"}
    before = network.get_buffer("m").clone()
    network.train()(torch.from_numpy(pixels(4, 3, 8, 8)))
    assert not torch.equal(network.get_buffer("m"), before)
    network.reinitialise()
    assert network.get_buffer("d").eq(1).all()


def with_nan() -> onnx.ModelProto:
    model = plain()
    array = np.full((5, 4), np.nan, np.float32)
    model.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(array, "v"))
    return model


def outside() -> onnx.ModelProto:
    model = plain()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    return model


def of_acme() -> onnx.ModelProto:
    node = helper.make_node("Magic", ["x"], ["y"], domain="com.acme")
    return model_of([node], {}, ("n", 3, 8, 8), domains=("com.acme",))


QUANTISED = "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)"
CHOOSING = "h = Conv(x, w) a = ArgMax<axis = 1>(h) f = Cast<to = 1>(a) m = GlobalAveragePool(f) "
CHOOSING += "k = Concat<axis = 1>(m, m) y = Flatten(k)"
POOLED = "h = Conv(x, w) g = GlobalAveragePool(h) y = Flatten(g)"


def of_two(text: str, outputs: tuple[str, ...], **options: Any) -> onnx.ModelProto:
    return classifier(text, {"w": weight(4, 3, 3, 3)}, outputs=outputs, **options)


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto | bytes], str]] = {
    "empty": (lambda: b"", "the file is empty"),
    "text": (lambda: b"not a model at all", "this is no ONNX model"),
    "opset": (lambda: plain(opset=99), "opset 99 is not supported, only 7 to 23"),
    "old opset": (lambda: plain(opset=6), "opset 6 is not supported"),
    "nan": (with_nan, "weight 'v' holds NaN"),
    "outside": (outside, "lies outside of the model's folder, in '../secret.bin'"),
    "domain": (
        lambda: of_acme(),
        "node Magic '' is of the domain 'com.acme'",
    ),
    "operator": (lambda: classifier("y = Magic(x)", {}), "ONNX has no operator Magic"),
    "unsupported": (
        lambda: classifier("h = Conv(x, w) d = Det(h) y = Flatten(d)", {"w": weight(4, 3, 3, 3)}),
        "operator Det is not supported",
    ),
    "quantised": (
        lambda: classifier(QUANTISED, {"s": np.array(1, np.float32), "z": np.array(0, np.uint8)}),
        "this is a quantised model",
    ),
    "integers": (
        lambda: classifier("f = Cast<to = 1>(w) y = Conv(x, f)", {"w": np.ones((4, 3, 3, 3), np.int8)}),
        "weight 'w' has integers or 8 bits",
    ),
    "detector": (
        lambda: of_two("y = Conv(x, w) z = Relu(y)", ("y", "z")),
        "no output holds class scores|has the shape",
    ),
    "segmentation": (lambda: of_two("y = Conv(x, w)", ("y",)), "its output has the shape"),
    "no gradient": (
        lambda: classifier(CHOOSING, {"w": weight(4, 3, 3, 3)}),
        "no gradient reaches its weights",
    ),
    "tokens": (
        lambda: classifier("y = Gather(w, x)", {"w": weight(9)}, ("n", 12), x_type=TensorProto.INT64),
        "is no image: floats or uint8 were expected, not int64",
    ),
    "sound": (lambda: classifier("y = Flatten(x)", {}, ("n", 1, 16000)), "is no batch of images"),
    "channels": (lambda: classifier(POOLED, {"w": weight(4, 6, 3, 3)}, ("n", 6, 8, 8)), "its input has 6 channels"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_file_that_is_no_classifier_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    make, reason = REFUSED[case]
    content = make()
    path = tmp_path / "model.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    with pytest.raises(PsysError, match=reason) as caught:
        import_classifier(path, 5, (8, 8), MEAN, STD, "keep")
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PsysError, match=r"nowhere\.onnx: cannot read the model: No such file"):
        import_network(tmp_path / "nowhere.onnx")


def test_restored_batch_norm_changes_nothing_in_eval_mode(tmp_path: Path) -> None:
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3), nn.AdaptiveAvgPool2d(1)]
    path = exported(nn.Sequential(*layers, nn.Flatten()), tmp_path / "m.onnx", dynamo=False, opset=17, batch=1)
    plain, notes = import_classifier(path, 5, (8, 8), MEAN, STD, "keep")
    assert any("--batchnorm restore puts it back" in note for note in notes)
    restored, _ = import_classifier(path, 5, (8, 8), MEAN, STD, "keep", "restore")
    x = torch.from_numpy(pixels(64, 3, 8, 8))
    with torch.no_grad():
        expected = plain.eval()(x)
        torch.testing.assert_close(restored.eval()(x), expected, atol=1e-5, rtol=1e-4)
        measure(restored, x)
        torch.testing.assert_close(restored.eval()(x), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(restored.train()(x), expected, atol=1e-4, rtol=1e-3)
    assert sum(1 for name, _ in restored.named_parameters() if "restored" in name) == 6

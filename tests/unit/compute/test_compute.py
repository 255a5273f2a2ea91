import numpy as np
import pytest
import torch
import torch.nn.functional as F

from psys.augment.batch import normalise
from psys.compute.device import choose_precision
from psys.compute.evaluate import evaluate
from psys.compute.flat import FlatModel
from psys.compute.step import gradient_step
from psys.data.store import PreparedStore
from psys.models.resnet import resnet


@pytest.fixture
def views(small_store: PreparedStore) -> tuple[torch.Tensor, torch.Tensor]:
    train = small_store.split("train")
    images = torch.tensor(train.images[::10])
    return normalise(images, small_store.channel_mean, small_store.channel_std), torch.tensor(train.labels[::10])


def test_a_flat_model_computes_what_the_module_did(views: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.manual_seed(0)
    module = resnet(8).eval()
    before = module(views[0])
    names = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    model = FlatModel(module)
    assert torch.equal(module(views[0]), before)
    assert all(torch.equal(tensor, names[name]) for name, tensor in module.state_dict().items())
    assert len(model.parameters) == len(model.gradient) == sum(p.numel() for p in module.parameters())
    assert model.decayed == sum(p.numel() for p in module.parameters() if p.dim() > 1)


def test_load_moves_every_parameter_and_statistic(views: tuple[torch.Tensor, torch.Tensor]) -> None:
    first, second = FlatModel(resnet(8).eval()), FlatModel(resnet(8).eval())
    gradient_step(second, *views, torch.float32)
    first.load(second.parameters, second.statistics)
    first.module.eval(), second.module.eval()
    assert torch.equal(first.module(views[0]), second.module(views[0]))


def test_the_gradient_is_in_the_flat_vector_and_does_not_pile_up(views: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = FlatModel(resnet(8))
    result = gradient_step(model, *views, torch.float32, label_smoothing=0.1)
    first = model.gradient.clone()
    again = gradient_step(model, *views, torch.float32, label_smoothing=0.1)
    assert torch.equal(model.gradient, first)
    assert (result.loss, result.correct, result.views) == (again.loss, again.correct, 16)
    model.module.zero_grad(set_to_none=True)
    logits = model.module(views[0])
    F.cross_entropy(logits, views[1], label_smoothing=0.1).backward()
    by_hand = torch.cat([p.grad.flatten() for p in sorted(model.module.parameters(), key=lambda p: p.dim() < 2)])
    assert torch.equal(first, by_hand)
    assert result.loss == pytest.approx(F.cross_entropy(logits, views[1]).item(), abs=1e-6)


def test_bf16_is_close_to_fp32(views: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = FlatModel(resnet(8))
    gradient_step(model, *views, torch.float32)
    exact = model.gradient.clone()
    gradient_step(model, *views, torch.bfloat16)
    assert model.gradient.dtype == torch.float32
    assert F.cosine_similarity(exact, model.gradient, dim=0) > 0.98


def test_precision_as_asked() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu) is torch.float32
    assert choose_precision("bf16", cpu) is torch.bfloat16
    assert choose_precision("auto", cpu) in (torch.float32, torch.bfloat16)


def test_evaluation_in_pieces_is_evaluation_of_the_whole(small_store: PreparedStore) -> None:
    test, module = small_store.split("test"), resnet(8)
    colours = (small_store.channel_mean, small_store.channel_std)
    whole = evaluate(module, test.images, test.labels, *colours, torch.device("cpu"))
    pieces = evaluate(module, test.images, test.labels, *colours, torch.device("cpu"), batch_size=7)
    assert whole.images == pieces.images == 40
    assert whole.accuracy == pieces.accuracy
    assert whole.loss == pytest.approx(pieces.loss, rel=1e-5)
    logits = module(normalise(torch.tensor(test.images), *colours))
    assert whole.accuracy == np.mean(logits.argmax(1).numpy() == test.labels)

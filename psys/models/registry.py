"""The networks that a run can select: by a name of psys, or a function of the user's as package.module:factory."""

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from psys.errors import PsysError
from psys.models.mlp import MLP
from psys.models.resnet import resnet
from psys.models.resnet18 import ResNet18
from psys.models.wide_resnet import WideResNet

_DEPTHS = {f"resnet{depth}": depth for depth in (8, 14, 20, 32, 44, 56, 110)}
_KNOWN = f"{', '.join(_DEPTHS)}, resnet18, wrn-16-4, mlp<hidden units, 1 to 9999>"


def build(name: str, num_classes: int, image_size: tuple[int, int] = (32, 32)) -> nn.Module:
    """A newly initialised network, (B, 3, H, W) -> logits (B, num_classes); its floats are float32.

    `name`: one of psys's own, or package.module:factory, which is called with num_classes=, and with image_size=
    (height, width) if it has an argument of that name. Raises PsysError for an unknown name, and for a factory that
    cannot be found or called.
    """
    if ":" in name:
        return _from_factory(name, num_classes, image_size)
    if name in _DEPTHS:
        return resnet(_DEPTHS[name], num_classes)
    if name == "resnet18":
        return ResNet18(num_classes)
    if name == "wrn-16-4":
        return WideResNet(16, 4, num_classes)
    if match := re.fullmatch(r"mlp([1-9]\d{0,3})", name):
        return MLP(int(match[1]), num_classes)
    raise PsysError(f"unknown model '{name}' (known: {_KNOWN}, package.module:factory, a path of a .onnx file)")


def name_of(factory: Callable[..., Any]) -> str:
    """package.module:factory of a function or class. Raises PsysError if other processes cannot import it."""
    module, name = getattr(factory, "__module__", None), getattr(factory, "__qualname__", "")
    if module in (None, "__main__") or not name.isidentifier():
        raise PsysError(
            f"the model {name or factory!r} cannot be imported by workers, which are processes of their own: define a "
            "function that makes it on the top level of a module, and pass that function"
        )
    return f"{module}:{name}"


def _from_factory(name: str, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    factory = _factory(name)
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        parameters = inspect.signature(lambda num_classes: None).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    if "num_classes" not in parameters and not takes_any:
        raise PsysError(f"model '{name}' takes no argument num_classes: psys calls it with the number of classes")
    arguments: dict[str, Any] = {"num_classes": num_classes}
    if "image_size" in parameters:
        arguments["image_size"] = image_size
    try:
        model = factory(**arguments)
    except Exception as error:  # of the user's code
        shown = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise PsysError(f"model '{name}' fails when it is called with {shown}: {_reason(error)}") from error
    if not isinstance(model, nn.Module):
        raise PsysError(f"model '{name}' returns a {type(model).__name__}: a torch.nn.Module was expected")
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise PsysError(
            f"model '{name}' has lazy layers: give them their sizes, since parameters are laid out at the start"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise PsysError(f"model '{name}' has no parameter that needs a gradient: nothing can be trained")
    return model.float()


def _factory(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does: the user's modules lie where the command is given
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        raise PsysError(
            f"model '{name}': there is no module '{missing}'; it must be importable on every host, from {here} or "
            "installed"
        ) from None
    except Exception as error:  # of the user's code
        raise PsysError(f"model '{name}': its module fails when it is imported: {_reason(error)}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise PsysError(f"model '{name}': the module {module_name} has no function '{attribute}'")
    return factory  # type: ignore[no-any-return]


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

"""One optimizer step on flat vectors, in place, by torch's own kernels."""

import torch
from torch import Tensor
from torch.optim.rmsprop import rmsprop

from psys.ps.optimizer import OptimizerConfig


def apply_gradient(
    config: OptimizerConfig,
    parameters: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    updates_before: int,
    rate: float,
    decay: float,
) -> None:
    """Move `parameters` and the optimizer's `state` (see OptimizerConfig.state_names) in place; all vectors are (n,).

    `updates_before`: updates that these vectors have seen; `decay`: weight decay of these parameters.
    """
    # torch.optim's classes call these functions in the end. The classes import torch's compiler, 75 MB and 1.5 s, and
    # take longer than the step itself of a small model.
    match config.kind:
        case "sgd":
            torch._fused_sgd_(
                [parameters],
                [gradient],
                [state["momentum"]] if config.momentum else [],
                lr=rate,
                weight_decay=decay,
                momentum=config.momentum,
                nesterov=config.nesterov,
                dampening=0.0,
                maximize=False,
                is_first_step=False,
            )
        case "rmsprop":  # torch has no fused RMSProp
            rmsprop(
                [parameters],
                [gradient],
                [state["squares"]],
                [],
                [state["momentum"]] if config.momentum else [],
                [torch.tensor(float(updates_before))],
                foreach=True,
                lr=rate,
                weight_decay=decay,
                momentum=config.momentum,
                alpha=config.smoothing,
                eps=1e-8,
                centered=False,
            )
        case "adam":
            torch._fused_adam_(
                [parameters],
                [gradient],
                [state["means"]],
                [state["squares"]],
                [],
                [torch.tensor(updates_before + 1.0)],
                lr=rate,
                weight_decay=decay,
                beta1=0.9,
                beta2=config.smoothing,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )

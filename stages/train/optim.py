"""The optimiser, its learning rate and its state, as DeiT's authors ran them.

The learning rate is a function of the step, not an object with a history, so a resumed run cannot
disagree with an undisturbed one. For the same reason the optimiser's state travels as named tensors:
rejected is the optimiser's own state_dict, which numbers its parameters and needs a pickle.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from schemas.errors import UserError

_NEVER_DECAYED = ("pos_embed", "cls_token")  # the authors' list; unlike timm's it leaves dist_token out
_STATE_KEYS = {torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"), torch.optim.SGD: ("momentum_buffer",)}


def build_optimizer(
    model: nn.Module, *, optimizer: Literal["adamw", "sgd"], weight_decay: float, fused: bool
) -> torch.optim.Optimizer:
    """AdamW or SGD over the parameters that train, in the model's order, in two groups: decayed and not.

    Not decayed are biases, 1-d tensors, the positional embedding, the class token, and what the model itself names in
    `no_weight_decay()`, but for the distillation token (the authors decay it, timm does not). The learning rate is 0
    until the trainer sets `group["lr"]`.

    Args:
        model: any module; prefixes that wrappers add to the names are ignored.
        optimizer: "adamw" has betas (.9, .999) and eps 1e-8; "sgd" has Nesterov momentum .9.
        weight_decay: decay of the first group.
        fused: update all parameters in one kernel; else torch chooses.
    """
    spared = spared_names(model)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [one for name, one in named if name not in spared and _decays(name, one)]
    others = [one for name, one in named if name in spared or not _decays(name, one)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    one_kernel = True if fused else None  # False would also switch off the loop over lists of tensors
    if optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8, fused=one_kernel)
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True, fused=one_kernel)


def spared_names(model: nn.Module) -> set[str]:
    """Parameters that a timm model wants undecayed, such as Swin's bias tables; the authors decay `dist_token`."""
    own = getattr(model, "no_weight_decay", None)
    return set(own()) - {"dist_token"} if callable(own) else set()


def learning_rate(
    step: int,
    *,
    steps_per_epoch: int,
    epochs: int,
    warmup_epochs: int,
    peak: float,
    warmup_lr: float,
    min_lr: float,
) -> float:
    """The learning rate of one step: a cosine with a linear warm-up inside it, constant within an epoch.

    The authors move the schedule once an epoch and after it, by that epoch's number, so epochs 0 and 1
    both run at `warmup_lr` and epoch e at the schedule's value for e - 1.

    Args:
        step: from 0 to steps_per_epoch * epochs - 1.
        steps_per_epoch: steps between two changes.
        epochs: length of the cosine, warm-up included.
        warmup_epochs: length of the warm-up; 0 = begin at the peak.
        peak: the learning rate after scaling with the batch.
        warmup_lr: where the warm-up begins.
        min_lr: where the cosine ends.
    """
    moved = max(step // steps_per_epoch - 1, 0)
    if moved < warmup_epochs:
        return warmup_lr + moved * ((peak - warmup_lr) / warmup_epochs)
    return min_lr + 0.5 * (peak - min_lr) * (1 + math.cos(math.pi * moved / epochs))


def state_to_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state as `<parameter name>/<state key>` tensors, in the model's order.

    The tensors are the live ones: write them before the next step. A parameter that never had a
    gradient has no state.
    """
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def tensors_to_state(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what `state_to_tensors` gave, into an optimiser that `build_optimizer` made for the same model.

    Whatever state the optimiser had is dropped; the tensors are copied to the parameters' devices.

    Raises:
        UserError: naming the first tensor that this optimiser has no place for.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    places = {names[id(parameter)]: (index, parameter) for index, parameter in enumerate(trained)}
    state: dict[int, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        index, parameter = places.get(name, (-1, value))
        wanted = torch.Size() if key == "step" else parameter.shape
        if index < 0 or key not in _STATE_KEYS[type(optimizer)] or value.shape != wanted:
            raise UserError(
                f"optimiser state {path} of shape {tuple(value.shape)} does not fit; "
                "resume with the student and the optimizer that made it"
            )
        state.setdefault(index, {})[key] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


SCALE_PREFIX = "scaler/"
_SCALE_KEYS = ("scale", "_growth_tracker")
"""In a checkpoint's state, what torch's gradient scaler says of itself, but for its constants."""


def scale_to_tensors(scaler: torch.amp.GradScaler) -> dict[str, Tensor]:
    """What fp16's gradients are multiplied with, and for how long it was right; nothing in other precisions."""
    state = scaler.state_dict()
    return {
        f"{SCALE_PREFIX}{key}": torch.tensor(state[key], dtype=torch.float64) for key in _SCALE_KEYS if key in state
    }


def tensors_to_scale(scaler: torch.amp.GradScaler, tensors: dict[str, Tensor]) -> None:
    """Put back what `scale_to_tensors` gave; without tensors the scaler stays as it is."""
    if tensors:
        found = {key: tensors[f"{SCALE_PREFIX}{key}"].item() for key in _SCALE_KEYS}
        found["_growth_tracker"] = int(found["_growth_tracker"])
        scaler.load_state_dict(scaler.state_dict() | found)


def _decays(name: str, parameter: Tensor) -> bool:
    last = name.rpartition(".")[2]
    return parameter.ndim > 1 and last != "bias" and last not in _NEVER_DECAYED

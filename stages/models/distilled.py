"""Distilled students beyond what timm's class does for them: arguments it forgets, and one head of the two alone.

timm's `VisionTransformerDistilled` is its plain transformer with one more token, which the plain one does not know of.
A plain transformer with one register token is the same network with one head: the register stands where the
distillation token stood. So the head that was trained can be handed on alone, under timm's own names.

Legend: D = width, N = tokens.
"""

from typing import Any

import timm
import torch
from timm.layers import PatchDropout
from torch import Tensor

from schemas.errors import UserError

_IGNORED: dict[str, tuple[tuple[Any, ...], str]] = {
    "class_token": ((True,), "needs its class token"),
    "no_embed_class": ((False,), "gives its tokens positions"),
    "global_pool": (("token",), "reads its two tokens"),
    "pool_include_prefix": ((False,), "reads its two tokens"),
    "reg_tokens": ((0,), "has no register tokens"),
    "fc_norm": ((None, False), "has no norm of its own before its heads"),
}
"""Arguments that timm's distilled class leaves out of its forward pass or fails on there: what it does, and why."""


def refuse_ignored(model: str, extra: dict[str, Any]) -> None:
    """Raise UserError if a distilled student ignores an argument, which timm does not report."""
    for key, (followed, why) in _IGNORED.items():
        if key in extra and extra[key] not in followed:
            raise UserError(f"extra = {extra}: a distilled student {why}; remove {key}, or choose {plain_name(model)}")


def keep_both_tokens(network: Any) -> None:
    """Let patch dropout keep the distillation token: timm sets it up before it knows of one, for one token to keep."""
    if isinstance(network.patch_drop, PatchDropout):
        network.patch_drop.num_prefix_tokens = network.num_prefix_tokens


def plain_name(model: str) -> str:
    """The plain transformer's name in timm of a distilled one, without a tag."""
    return model.partition(".")[0].replace("_distilled", "")


def one_head(network: Any, model: str, head: str, arguments: dict[str, Any]) -> tuple[Any, str, dict[str, Any]]:
    """A distilled network with one of its heads alone, as timm's plain transformer.

    Args:
        network: timm's distilled network, with its weights.
        model: its name in timm.
        head: "class" or "distillation".
        arguments: of timm.create_model that it was built with.

    Returns:
        The network in eval mode, its name in timm, and the arguments to build it with.
    """
    name, arguments = plain_name(model), {**arguments, "reg_tokens": 1}
    plain = timm.create_model(name, **arguments)
    plain.load_state_dict(_one_head_weights(network.state_dict(), head))
    return plain.eval(), name, arguments


def _one_head_weights(weights: dict[str, Tensor], head: str) -> dict[str, Tensor]:
    """The plain transformer's weights: the token that `head` reads is its class token, the other its register."""
    weights = dict(weights)
    tokens = weights.pop("cls_token"), weights.pop("dist_token")
    weights["cls_token"], weights["reg_token"] = tokens if head == "class" else tokens[::-1]
    if head == "distillation":
        positions_1ND = weights["pos_embed"]
        order = torch.tensor([1, 0, *range(2, positions_1ND.shape[1])])
        weights["pos_embed"] = positions_1ND[:, order]
        weights |= {f"head.{part}": weights[f"head_dist.{part}"] for part in ("weight", "bias")}
    return {name: value for name, value in weights.items() if not name.startswith("head_dist.")}

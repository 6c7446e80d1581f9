"""Tokens: how alike class and distillation token are, layer by layer (paper, section 4: .06 as learned, .93 at last).

Legend: B images of a batch, N tokens, D width, L blocks.
"""

from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity

from schemas import paper
from schemas.errors import UserError
from stages.data.center_crop import Crops
from stages.evaluate.evaluated_model import EvaluatedModel
from stages.models.classifier import Classifier
from stages.plotting.charts import Series, chart, markdown


@torch.inference_mode()
def token_cosines(evaluated: EvaluatedModel, crops: Iterable[Crops]) -> dict[str, Any]:
    """Cosine between a distilled student's class token and its distillation token.

    Args:
        evaluated: a model with a distillation token.
        crops: batches, each image once.

    Returns:
        `samples`; `learned`, of the two vectors as they were learned; `layers`, mean cosines over the images at the
        input (positions added) and after each of L blocks, L + 1 numbers; `normed`, after the last norm, where the
        heads read; `deviation`, the standard deviations that belong to `layers`.

    Raises:
        UserError: if the model has no distillation token, or there is no image.
    """
    network = evaluated.network
    if not isinstance(network, Classifier) or not network.distilled:
        raise UserError(
            f"evaluate --tokens: {evaluated.model} has no distillation token; name a run of a distilled student by "
            "train.name"
        )
    model = network.model
    seen: list[Tensor] = []
    hooks = [model.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(_cosine(given[0])))]
    layers = [*model.blocks, model.norm]
    hooks += [one.register_forward_hook(lambda _, given, out: seen.append(_cosine(out))) for one in layers]
    found = []
    try:
        for batch in crops:
            seen.clear()
            evaluated.heads(batch.views)
            found.append(torch.stack(seen, 1).double().cpu())
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise UserError("evaluate --tokens: there are no images")
    cosines_BL = torch.cat(found)
    mean, deviation = cosines_BL.mean(0).tolist(), cosines_BL.std(0, correction=0).tolist()
    learned = cosine_similarity(model.cls_token.flatten(), model.dist_token.flatten(), dim=0)
    return {
        "samples": len(cosines_BL),
        "learned": float(learned),
        "layers": mean[:-1],
        "deviation": deviation[:-1],
        "normed": mean[-1],
    }


def _cosine(tokens_BND: Tensor) -> Tensor:
    """Of the first two tokens, float [B]."""
    return cosine_similarity(tokens_BND[:, 0].float(), tokens_BND[:, 1].float(), dim=1)


def table(found: dict[str, Any]) -> str:
    """The cosines in Markdown, with the paper's two."""
    rows = [["as learned", f"{found['learned']:.3f}", "", f"{paper.TOKENS['learned']:.2f}"]]
    last = len(found["layers"]) - 1
    for layer, (mean, deviation) in enumerate(zip(found["layers"], found["deviation"], strict=True)):
        theirs = f"{paper.TOKENS['last']:.2f}" if layer == last else ""
        rows.append([f"block {layer}" if layer else "input", f"{mean:.3f}", f"{deviation:.3f}", theirs])
    rows.append(["behind the last norm", f"{found['normed']:.3f}", "", ""])
    head = ["where", "mean cosine", "standard deviation", f"the paper's ({paper.CREDIT}, section 4, DeiT-B)"]
    return f"Class and distillation token, over {found['samples']:,} images.\n\n{markdown(head, rows)}"


def draw(title: str, found: dict[str, Any]) -> Image.Image:
    """Mean cosine by layer, and the paper's two values."""
    layers = found["layers"]
    theirs = [(0.0, paper.TOKENS["learned"]), (float(len(layers) - 1), paper.TOKENS["last"])]
    marks = (f"{theirs[0][1]:.2f}", f"{theirs[1][1]:.2f} at the last block")
    return chart(
        title,
        f"Cosine between class and distillation token, mean over {found['samples']:,} images; 0 is the input.",
        [
            Series("measured", [(float(number), value) for number, value in enumerate(layers)]),
            Series("the paper's, DeiT-B", theirs, joined=False, labels=marks),
        ],
        x="block",
        y="mean cosine",
        y_range=(0.0, 1.0),
    )

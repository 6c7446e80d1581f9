"""What each store keeps of a teacher's logits, and the probabilities that are read back from it.

`keep` runs on the teacher's device, batch by batch; `probabilities` brings the two small soft stores back to the form
of `topk`, part by part, so that losses know one form. Both formulas are written down in `schemas/tables.py`: any
reader of Parquet can compute them.

Rejected for `compact`: steps that are even in the square roots of probabilities. They spend fewer bits on unlikely
classes at temperature 1, and at temperature 3 these are what is learned.

Legend: B views of a batch, N views of a part, K classes, k kept classes, S samples.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from schemas.config import LabelsConfig
from schemas.tables import COMPACT_STEP

_ODDS = 127
"""The tail's log-odds are kept within so many steps of even: a lighter tail has less than 2e-7 of the mass."""
_NOTHING = -1e4
"""The logit of a place in `sampled` that no class has: its probability is exactly 0."""


def keep(logits_BK: Tensor, settings: LabelsConfig, tau: float, offsets_B: Tensor | None = None) -> dict[str, Tensor]:
    """What a store keeps of a batch's logits.

    Logits are rounded to 16 bits first and normalisers are those of the rounded ones, so what `topk` and `full` store
    is one exact distribution, whether all of it is there or k classes, and what `compact` and `sampled` approximate.

    Args:
        logits_BK: the teacher's, float32.
        settings: the run file's `[labels]`.
        tau: temperature of the second normaliser, or of the samples.
        offsets_B: float64 in [0, 1), uniform and independent; of `sampled` alone.

    Returns:
        `decision` int64 [B]; for topk also `classes` int64 [B, k], `logits` float16 [B, k], `lse_1` and `lse_tau`
        float32 [B]; for full `logits` float16 [B, K]; for compact `others` int64 [B, k - 1], `steps` uint8 [B, k - 1],
        `tail_1` and `tail_tau` int8 [B]; for sampled `samples` int64 [B, S]. A logit that does not fit 16 bits is
        infinite.
    """
    order_BK = logits_BK.argsort(dim=1, descending=True, stable=True)
    kept = {"decision": order_BK[:, 0]}
    if settings.store == "hard":
        return kept
    logits_BK = logits_BK.half()
    if settings.store == "full":
        return kept | {"logits": logits_BK}
    wide_BK = logits_BK.float()
    if settings.store == "sampled":
        assert offsets_B is not None
        return kept | {"samples": _samples(wide_BK / tau, settings.samples, offsets_B)}
    classes_Bk = order_BK[:, : settings.topk]
    if settings.store == "compact":
        return kept | {"others": classes_Bk[:, 1:]} | _steps(wide_BK, classes_Bk, tau)
    return kept | {
        "classes": classes_Bk,
        "logits": logits_BK.gather(1, classes_Bk),
        "lse_1": wide_BK.logsumexp(1),
        "lse_tau": (wide_BK / tau).logsumexp(1),
    }


def _steps(logits_BK: Tensor, classes_Bk: Tensor, tau: float) -> dict[str, Tensor]:
    """Distances of logits from the largest, and the tail's log-odds at temperatures 1 and tau, all in steps."""
    kept_Bk = logits_BK.gather(1, classes_Bk)
    rest_BK = logits_BK.scatter(1, classes_Bk, -torch.inf)
    below_Bk = (kept_Bk[:, :1] - kept_Bk[:, 1:]) / COMPACT_STEP

    def tail(at: float) -> Tensor:
        odds_B = (rest_BK / at).logsumexp(1) - (kept_Bk / at).logsumexp(1)
        return (odds_B / COMPACT_STEP).round().clamp(-_ODDS, _ODDS).to(torch.int8)

    return {"steps": below_Bk.round().clamp(max=255).to(torch.uint8), "tail_1": tail(1.0), "tail_tau": tail(tau)}


def _samples(logits_BK: Tensor, count: int, offsets_B: Tensor) -> Tensor:
    """Classes drawn with the softmax's probabilities, ascending, int64 [B, S].

    One offset moves S evenly spaced points over the classes' cumulative probability (systematic sampling): every
    class is drawn S times its probability on average, as by independent draws, and differs from that by less than one.
    """
    cumulative_BK = logits_BK.double().softmax(1).cumsum(1)
    points_BS = (torch.arange(count, device=logits_BK.device) + offsets_B.to(logits_BK.device)[:, None]) / count
    drawn_BS = torch.searchsorted(cumulative_BK, points_BS * cumulative_BK[:, -1:], right=True)
    return drawn_BS.clamp(max=logits_BK.shape[1] - 1)


def probabilities(columns: dict[str, np.ndarray], store: str, tau: float) -> dict[str, np.ndarray]:
    """A part's columns with those of `topk` in place of what `compact` or `sampled` keeps.

    Args:
        columns: of a part's file.
        store: "compact" or "sampled".
        tau: the set's temperature.

    Returns:
        `classes` uint16 [N, k], `logits` float32 [N, k], `lse_1` (compact alone) and `lse_tau` float32 [N]; k is the
        largest number of classes that a view has.
    """
    others = {name: values for name, values in columns.items() if name not in ("others", "steps", "samples")}
    if store == "sampled":
        return others | _shares(columns["samples"], tau)
    classes = np.concatenate([columns["decision"][:, None], columns["others"]], axis=1)
    steps = np.concatenate([np.zeros((len(classes), 1), np.uint8), columns["steps"]], axis=1)
    logits = torch.from_numpy(-COMPACT_STEP * steps.astype(np.float32))
    found: dict[str, np.ndarray] = {"classes": classes, "logits": logits.numpy()}
    for name, at in (("1", 1.0), ("tau", tau)):
        odds = torch.from_numpy(COMPACT_STEP * others.pop(f"tail_{name}").astype(np.float32))
        found[f"lse_{name}"] = ((logits / at).logsumexp(1) - logsigmoid(-odds)).numpy()
    return others | found


def _shares(samples_NS: np.ndarray, tau: float) -> dict[str, np.ndarray]:
    """The classes of each view's samples and tau times the logarithms of their shares; samples are ascending."""
    count, size = samples_NS.shape
    first_NS = np.ones((count, size), bool)
    first_NS[:, 1:] = samples_NS[:, 1:] != samples_NS[:, :-1]
    place_NS = np.cumsum(first_NS, axis=1) - 1  # of each sample's class among its view's
    most = int(place_NS.max(initial=-1)) + 1
    rows = np.repeat(np.arange(count), size)
    drawn_Nk = np.zeros((count, most), np.int64)
    np.add.at(drawn_Nk, (rows, place_NS.ravel()), 1)
    classes_Nk = np.zeros((count, most), np.uint16)
    classes_Nk[rows, place_NS.ravel()] = samples_NS.ravel()
    logits_Nk = np.where(drawn_Nk > 0, tau * np.log(np.maximum(drawn_Nk, 1) / max(size, 1)), _NOTHING)
    return {"classes": classes_Nk, "logits": logits_Nk.astype(np.float32), "lse_tau": np.zeros(count, np.float32)}

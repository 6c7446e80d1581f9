"""Bytes a view of every store of labels from the same logits, and how far its probabilities are from the exact ones.

    PYTHONPATH=. python benchmarks/stores.py runs/photos/labels/full --merge 2

The folder is a label set with labels.store = "full". Each of its files is written again as every other store would
write that part, so that nothing but the store differs; receipts, plan and manifest are not counted. KL is from the
probabilities of the k likeliest classes and of all others together, as `topk` keeps them, in nats, by view.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from schemas.config import LabelsConfig
from stages.label.encoding import keep, probabilities
from stages.label.label_file import Signatures, read_labels, write_labels

STORES = [one for one in get_args(LabelsConfig.model_fields["store"].annotation) if one != "full"]

Part = tuple[dict[str, np.ndarray], Signatures]


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help='of a label set with labels.store = "full"')
    parser.add_argument("--merge", type=int, default=1, help="neighbouring files that are written as one part")
    parser.add_argument("--topk", type=int, default=10, help="logits that topk and compact keep")
    parser.add_argument("--samples", type=int, default=50, help="classes that sampled draws")
    parser.add_argument("--tau", type=float, default=3.0, help="the set's temperature, as train.tau")
    arguments = parser.parse_args()
    files = [read_labels(path.read_bytes()) for path in sorted(Path(arguments.folder).glob("*.parquet"))]
    parts = [merged(files[start : start + arguments.merge]) for start in range(0, len(files), arguments.merge)]
    for store in STORES:
        settings = LabelsConfig(store=store, topk=arguments.topk, samples=arguments.samples)
        print(json.dumps({"store": store} | measure(parts, settings, arguments.tau)), flush=True)


def merged(files: list[Part]) -> Part:
    """Files of one shard as one."""
    columns = {name: np.concatenate([one[name] for one, _ in files]) for name in files[0][0]}
    return columns, {at: kept for _, signatures in files for at, kept in signatures.items()}


def measure(parts: list[Part], settings: LabelsConfig, tau: float) -> dict[str, Any]:
    """Bytes of all parts in a store and, of `compact`, its divergence at temperatures 1 and tau."""
    length, views, found = 0, 0, dict[float, list[Tensor]]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "part.parquet")
        for columns, signatures in parts:
            logits = torch.from_numpy(columns["logits"].astype(np.float32))
            offsets = torch.rand(len(logits), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            kept = {name: one.numpy() for name, one in keep(logits, settings, tau, offsets).items()}
            address = {"row": columns["row"], "view": columns["view"]}
            write_labels(path, settings.store, int(columns["shard"][0]), address | kept, signatures)
            length, views = length + path.stat().st_size, views + len(logits)
            if settings.store == "compact":
                for at, name in ((1.0, "lse_1"), (tau, "lse_tau")):
                    found.setdefault(at, []).append(divergence(logits, probabilities(kept, "compact", tau), at, name))
    far = {f"kl_at_{at:g}": {"mean": float(torch.cat(one).mean()), "largest": float(torch.cat(one).max())}
           for at, one in found.items()}  # fmt: skip
    return {"bytes": length, "a_view": round(length / max(views, 1), 3)} | far


def divergence(logits_NK: Tensor, columns: dict[str, np.ndarray], tau: float, normaliser: str) -> Tensor:
    """KL(exact | kept) over the kept classes and all others together, float64 [N]."""
    classes = torch.from_numpy(columns["classes"].astype(np.int64))
    exact = (logits_NK.double() / tau).softmax(1).gather(1, classes)
    logs = torch.from_numpy(columns["logits"]).double() / tau
    kept = (logs - torch.from_numpy(columns[normaliser]).double()[:, None]).exp()
    p, q = (torch.cat([one, 1 - one.sum(1, keepdim=True)], 1).clamp(min=1e-30) for one in (exact, kept))
    return (p * (p / q).log()).sum(1)


if __name__ == "__main__":
    main()

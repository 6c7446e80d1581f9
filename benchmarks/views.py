"""How many views are enough, in which store, and which decisions: one student of benchmarks/cifar10.py, equal epochs.

    PYTHONPATH=. python benchmarks/views.py --images cifar10.tar

Runs in the workspace of benchmarks/cifar10.py and on its teacher, after its table. The student has a distillation token
and trains for as many epochs in every line; a line has a label set of its own, with V views of each image, which begin
again where an epoch needs more. Hard distillation from `hard`, usual (soft) distillation from `topk`, `compact` and
`sampled`; the selection learns the half of the decisions with the largest margins, and the true label of the other
views. Rerun the same command to resume; docs/evidence/views.json, .md and .png are written after each training.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cifar10 import ROWS, Setting, Training, heads_of, parsed, quiet, read, say, side_by_side, table_3, timed
from cifar10_report import bytes_of, label_set

from stages.data.split import Split

VIEWS = (1, 3, 10, 30)
"""Views of an image, where they are fewer than the epochs; and as many as these."""
TOPK, SAMPLES = 5, 20
SOFT = {"distillation": "soft", "tau": 3.0, "alpha": 0.1, "soft_reduction": "paper"}
"""The paper's usual distillation, on the distillation token."""


class Line(NamedTuple):
    """A line of the table: a store with so many views, and whether the half with the largest margins is learned."""

    store: str
    views: int
    selected: bool = False

    @property
    def name(self) -> str:
        """Of its run."""
        return f"{'selected' if self.selected else self.store}-{self.views}-views"


def lines(epochs: int) -> list[Line]:
    """All lines, those that say most first."""
    fewer = [views for views in VIEWS if views < epochs]
    found = [Line("hard", epochs), Line("topk", epochs, selected=True), Line("topk", epochs)]
    found += [Line(store, views) for views in fewer for store in ("hard", "topk")]
    return [*found, Line("compact", epochs), Line("sampled", epochs)]


def main() -> None:
    """Run what is missing, write the evidence."""
    setting, arguments = parsed(__doc__)
    out = Path(arguments.out)
    table_3(setting, Path(arguments.images), out, arguments.jobs)  # what is done of it is skipped in seconds
    ablate(setting, out, arguments.jobs)


def ablate(setting: Setting, out: Path, jobs: int) -> None:
    """Label and train every line, and write the evidence after each."""
    from views_report import write_evidence

    from pipeline.commands.run import label

    wanted = lines(setting.sizes.epochs)
    for line in wanted:
        run = run_file(setting, line, margin=0.0)
        timed(setting.root, f"labels-{run.labels.name}", lambda run=run: label(run, quiet))
    for _ in side_by_side(list(trainings(setting, wanted)), jobs):
        write_evidence(setting, out)
    say(f"evidence -> {out}/views.md")


def trainings(setting: Setting, wanted: list[Line]) -> Iterator[Training]:
    """The trainings of lines whose sets are labelled."""
    for line in wanted:
        margin = median_margin(setting, line) if line.selected else 0.0
        yield Training(run_file(setting, line, margin), ())


def run_file(setting: Setting, line: Line, margin: float) -> Any:
    """The run file of a line."""
    hard = line.store == "hard" or line.selected
    labels = {
        "name": f"{line.store}-{line.views}", "store": line.store, "views": line.views, "topk": topk(setting),
        "samples": SAMPLES,
    }  # fmt: skip
    train = (ROWS["token"].train | {"min_margin": margin} if hard else SOFT) | {"reuse_views": True}
    tau = {} if hard and line.store == "hard" else {"tau": SOFT["tau"]}  # the sets of one store are one
    return setting.run_file(line.name, 2, labels=labels, train=train | tau)


def topk(setting: Setting) -> int:
    """Logits that are kept, fewer than there are classes."""
    return min(TOPK, len(Split.open(str(setting.root), "train").classes) - 1)


def median_margin(setting: Setting, line: Line) -> float:
    """The margin that half of a set's decisions have."""
    found = label_set(setting.root, f"{line.store}-{line.views}")
    if found is None:
        raise RuntimeError(f"{line.store}-{line.views} is not labelled yet")
    return float(found.manifest.margins["p50"])


def measured(setting: Setting, line: Line) -> dict[str, Any]:
    """What is known of a line: top-1 by head, what its labels took, and the median margin where it selects."""
    run, labels = read(setting.root, line.name), f"{line.store}-{line.views}"
    found = label_set(setting.root, labels)
    decisions = sum(found.parts.rows) if found else 0
    stored = bytes_of(found) if found else 0
    return {
        **line._asdict(),
        "top1": heads_of(run),
        "margin": median_margin(setting, line) if line.selected and found else None,
        "teacher_cpu_seconds": read(setting.root, f"labels-{labels}").get("cost", {}).get("cpu_seconds"),
        "teacher_seconds": read(setting.root, f"labels-{labels}").get("cost", {}).get("seconds"),
        "decisions": decisions,
        "bytes": stored,
        "bytes_a_view": stored / decisions if decisions else None,
    }


if __name__ == "__main__":
    # Threads that wait must not take cores from the trainings beside them; set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()

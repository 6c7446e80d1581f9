"""Metrics of a training: one JSON line every few steps, without gaps or doubles whatever happens.

Sums stay on the device between lines, so a step never waits for them. A checkpoint holds the lines so far and the sums
since the last one; a resumed run continues from both. `metrics.jsonl` is the newest checkpoint's lines for users to
read, with measured times, which are in no checkpoint: two commands that train one run write the same bytes there.
Rejected: resuming from metrics.jsonl. Of two commands the slower overwrote the faster one's lines.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from schemas.errors import UserError
from stages.storage.run_files import METRICS_FILE
from stages.storage.store import Store
from stages.storage.validations import read_validations
from stages.train.checkpoint import newest_lines

_CLOCK = ("views_per_second", "waiting", "mfu")
_ALWAYS = {"views_per_second", "waiting"}
_NEVER = 2**62


class Metrics:
    """Means of a training's terms since the last line, and the lines.

    Args:
        store: of the run's folder.
        made_by: fingerprint of what the training is made from.
        every: steps between lines.
        rank: of this process.
        world: number of processes, whose means are averaged.
        device: where sums are kept.
        views_at_peak: views a second that a device would train at its peak; None = unknown, without `mfu`.
    """

    PREFIX = "metrics/"

    def __init__(
        self,
        store: Store,
        made_by: str,
        every: int,
        *,
        rank: int,
        world: int,
        device: torch.device,
        views_at_peak: float | None = None,
    ) -> None:
        self._views_at_peak = views_at_peak
        self._store, self._made_by, self._every, self._rank, self._world = store, made_by, every, rank, world
        self._device = device
        self._lines: list[dict[str, Any]] = []
        self._sums: dict[str, Tensor] = {}  # of this process
        self._views = self._timed_views = 0
        self._bad_step = torch.tensor(_NEVER, device=device)
        self._waited = 0.0
        self._since = time.perf_counter()

    @property
    def last(self) -> dict[str, Any]:
        """The newest line; empty before the first."""
        return self._lines[-1] if self._lines else {}

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Hand batches on, counting the time spent waiting for them."""
        waiting = iter(batches)
        self._since = time.perf_counter()
        while True:
            before = time.perf_counter()
            try:
                batch = next(waiting)
            except StopIteration:
                return
            self._waited += time.perf_counter() - before
            yield batch

    def add(self, terms: dict[str, Tensor], views: int) -> None:
        """Add a micro-batch's means, float32 scalars, weighted by its views."""
        for name, value in terms.items():
            so_far = self._sums.get(name)
            weighted = value.detach().double() * views
            self._sums[name] = weighted if so_far is None else so_far + weighted
        self._views += views * self._world

    def end_step(self, step: int, lr: float, epoch: int, views: int, addresses: Callable[[int], str]) -> None:
        """Close a step; every few steps write a line.

        Raises:
            UserError: if a loss since the last line is not finite.
        """
        self._timed_views += views
        bad = ~self._sums["loss"].isfinite()  # from the first bad loss on, as they are summed
        self._bad_step = torch.where(bad, self._bad_step.clamp(max=step), self._bad_step)
        if (step + 1) % self._every:
            return
        means = self._means()
        self._refuse(means["loss"], addresses)
        elapsed = time.perf_counter() - self._since
        self._lines.append(
            {"step": step + 1, "epoch": epoch, **means, "lr": lr}
            | {"views_per_second": round(self._timed_views * self._world / elapsed, 1)}
            | {"waiting": round(self._waited / elapsed, 4)}
            | ({"mfu": round(self._timed_views / elapsed / self._views_at_peak, 4)} if self._views_at_peak else {})
        )
        self._sums, self._views = {}, 0
        self._timed_views, self._waited, self._since = 0, 0.0, time.perf_counter()

    def refuse_bad_losses(self, addresses: Callable[[int], str]) -> None:
        """Raise UserError if a loss since the last line is not finite, before it enters a checkpoint."""
        if self._sums:
            self._refuse(self._means()["loss"], addresses)

    def loss(self) -> float | None:
        """Mean loss since the last line, or of it; None before the first step. Collective: all processes call it."""
        return self._means()["loss"] if self._sums else self.last.get("loss")

    def state(self) -> dict[str, Tensor]:
        """The sums since the last line over all processes, for a checkpoint. Collective: every process calls it."""
        values = self._over_ranks() if self._sums else ()
        sums = {f"{self.PREFIX}{name}": value.clone() for name, value in zip(self._sums, values, strict=True)}
        return sums | {f"{self.PREFIX}views": torch.tensor(self._views)}

    def lines(self) -> bytes:
        """The lines so far without measured times, for a checkpoint."""
        return _to_bytes([{key: line[key] for key in line if key not in _CLOCK} for line in self._lines])

    def restore(self, step: int, state: dict[str, Tensor], lines: bytes | None) -> None:
        """Go back to a checkpoint's step, sums and lines, made by any number of processes: the first takes all sums.

        Raises:
            UserError: if a checkpoint of an earlier version has no lines, and the stored `metrics.jsonl` is damaged.
        """
        self._lines = self._lines_of_earlier_version(step) if lines is None else _parse(lines)
        # in one order on all ranks, who add up by place: a tensor file's is another in every process
        named = {name.removeprefix(self.PREFIX): state[name] for name in sorted(state)}
        self._views = int(named.pop("views", torch.tensor(0)))
        self._sums = {name: value.to(self._device) * (self._rank == 0) for name, value in named.items()}

    def _lines_of_earlier_version(self, step: int) -> list[dict[str, Any]]:
        """The stored lines of `metrics.jsonl`, up to a step, but for validations."""
        try:
            return [line for line in _read(self._store) or () if line["step"] <= step and not _validated(line)]
        except ValueError as error:
            raise UserError(
                f"{self._store.display_path(METRICS_FILE)}: is damaged ({error}); fix it, or delete it to go on "
                "without its lines"
            ) from None

    def show(self, validations: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
        """Put the lines for people to read, once a checkpoint has them, with those of validations."""
        return show(self._store, self._made_by, self._lines, validations=validations)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """For what is done between two steps and is no part of them: the clock of rates stands still."""
        before = time.perf_counter()
        yield
        self._since += time.perf_counter() - before

    def _means(self) -> dict[str, float]:
        means = zip(self._sums, (self._over_ranks() / self._views).tolist(), strict=True)
        return dict(sorted(means))  # in one order, resumed or not: a line's bytes are a checkpoint's

    def _over_ranks(self) -> Tensor:
        """The sums of all processes added up, in the order of their names."""
        values = torch.stack(list(self._sums.values()))
        if self._world > 1:
            dist.all_reduce(values)
        return values

    def _refuse(self, loss: float, addresses: Callable[[int], str]) -> None:
        if math.isfinite(loss):
            return
        if self._world > 1:
            dist.all_reduce(self._bad_step, dist.ReduceOp.MIN)
        step = int(self._bad_step)
        raise UserError(
            f"the loss of step {step} is not finite; {addresses(step)}; the last good checkpoint is kept: lower "
            'train.lr, or set train.precision = "fp32"'
        )


def show(
    store: Store,
    made_by: str,
    timed: Sequence[dict[str, Any]] = (),
    *,
    validations: Sequence[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Write the newest checkpoint's lines to `metrics.jsonl`, with measured times where they are known.

    Afterwards it checks again: another command may have committed a newer checkpoint, and written its lines,
    meanwhile. So the last writer writes the newest lines.

    Args:
        store: of the run's folder.
        made_by: fingerprint of what the training is made from.
        timed: lines with measured times, besides the stored ones.
        validations: lines of validations, besides the stored ones; None = read them.

    Returns:
        The lines; empty where no checkpoint has any.
    """
    if validations is None:
        validations = [one.line for one in read_validations(store)]
    shown, lines = None, list[dict[str, Any]]()
    while (newest := newest_lines(store, made_by)) not in (None, shown):
        shown = newest
        try:
            beside = _read(store)
        except ValueError:
            beside = None  # damaged; it is written again
        lines = _merged(_parse(newest), [*(beside or ()), *timed], validations)
        if lines != beside:
            store.put(METRICS_FILE, _to_bytes(lines))
    return lines


def _merged(
    lines: list[dict[str, Any]], beside: Sequence[dict[str, Any]], validations: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Lines with what the clock said of them, and after that of its step each validation."""
    clock = {
        line["step"]: {key: line[key] for key in _CLOCK if key in line} for line in beside if line.keys() >= _ALWAYS
    }
    validated = {line["step"]: line for line in (*filter(_validated, beside), *validations)}
    trained = [line | clock.get(line["step"], {}) for line in lines]
    return sorted([*trained, *validated.values()], key=lambda line: (line["step"], _validated(line)))


def _validated(line: dict[str, Any]) -> bool:
    """Whether a line is a validation's."""
    return "val_images" in line


def _read(store: Store) -> list[dict[str, Any]] | None:
    """The stored lines of `metrics.jsonl`; raises ValueError if they are damaged."""
    try:
        return _parse(store.read(METRICS_FILE))
    except FileNotFoundError:
        return None


def _parse(text: bytes) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    if not all(isinstance(line, dict) and isinstance(line.get("step"), int) for line in lines):
        raise ValueError("a line without its step")
    return lines


def _to_bytes(lines: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)

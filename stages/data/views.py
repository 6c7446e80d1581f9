"""Views of a split's samples by address, as uint8 arrays, and the mixes of pairs.

Legend: U pair-views, S side of a view.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from itertools import islice

import cv2
import numpy as np
import torch

from schemas.errors import UserError
from schemas.recipe import Recipe
from stages.data.decoded import DecodedCache
from stages.data.split import Split
from stages.replay.apply import Renderer
from stages.replay.decide import DecidedMix, Decider
from stages.replay.decode import DECODERS, decode
from stages.replay.mix import Mix
from stages.replay.order import PairView


class ViewRenderer:
    """Makes views of a split's samples by address.

    It keeps the two images used last, which are a pair, and others decoded while they fit into `keep_bytes`.
    """

    def __init__(self, split: Split, recipe: Recipe, keep_bytes: int = 0) -> None:
        self.split, self.recipe = split, recipe
        self.decider = Decider(recipe)
        self.renderer = Renderer(recipe.image_size)
        self._pixels = DecodedCache(split) if split.cache.decoded else None
        self._keep_bytes, self._kept_bytes = keep_bytes, 0
        self._decoded: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def view(self, shard: int, row: int, view: int, out: np.ndarray) -> None:
        """Write a view, uint8 [S, S, 3], into `out`.

        Raises:
            UserError: if the image is not the one that was sharded or cannot be decoded.
        """
        self.views([(shard, row, view)], out[None])

    def views(self, slots: Sequence[tuple[int, int, int]], outs: np.ndarray) -> None:
        """Write the views of many slots, each (shard, row, view), into `outs`, uint8 [slots, S, S, 3].

        Those of one image are made together, while it is in the processor's cache.

        Raises:
            UserError: as `view`.
        """
        of_image: dict[tuple[int, int], list[int]] = {}
        for slot, (shard, row, _) in enumerate(slots):
            of_image.setdefault((shard, row), []).append(slot)
        for (shard, row), mine in of_image.items():
            index = self.split.index(shard)
            size = int(index.heights[row]), int(index.widths[row])
            decided = [self.decider.view(*slots[slot], *size) for slot in mine]
            image = self._image(shard, row, max(one.crop.top + one.crop.height for one in decided), size)
            self.renderer.render_all(image, decided, [outs[slot] for slot in mine])

    def mixes(self, units: Sequence[PairView]) -> Mix:
        """The decided mixes of pair-views."""
        return stack_mixes([self.decider.mix(unit.shard, unit.pair, unit.view) for unit in units])

    def _image(self, shard: int, row: int, rows: int, size: tuple[int, int]) -> np.ndarray:
        """The image, of which at least the first `rows` rows are there; all of them where other views want it too."""
        address = shard, row
        kept = self._decoded.get(address)
        if kept is None or len(kept) < rows:
            self._kept_bytes -= kept.nbytes if kept is not None else 0
            once = kept is None and not self._keep_bytes
            self._decoded[address] = self._load(shard, row, rows if once else None, size)
            self._kept_bytes += self._decoded[address].nbytes
        self._decoded.move_to_end(address)
        self._forget()
        return self._decoded[address]

    def expect(self, now: Sequence[int], after: Sequence[int]) -> None:
        """Say which shards are read now and which after them, as `Split.expect`; not those whose pixels are all kept.

        Raises:
            UserError: if the cache of shards cannot hold those that are read now.
        """
        kept = self._pixels.complete if self._pixels else lambda _: False
        self.split.expect(*([shard for shard in shards if not kept(shard)] for shards in (now, after)))

    def _load(self, shard: int, row: int, rows: int | None, size: tuple[int, int]) -> np.ndarray:
        if self._pixels:
            image = self._pixels.image(shard, row, partial(self._decode, shard, row, None, size))
            if image is not None:
                return image
        return self._decode(shard, row, rows, size)

    def _decode(self, shard: int, row: int, rows: int | None, size: tuple[int, int]) -> np.ndarray:
        data = self.split.image(shard, row)
        try:
            image = decode(data, rows)
            height, width = image.shape[:2]
            if width != size[1] or not (rows or size[0]) <= height <= size[0]:
                raise ValueError(f"is {width} x {height} pixels, its index says {size[1]} x {size[0]}; shard again")
        except ValueError as error:
            name = self.split.index(shard).names[row]
            raise UserError(f"{self.split.store}: image {name} (shard {shard}, row {row}): {error}") from None
        return image

    def _forget(self) -> None:
        """Drop what does not fit, but never the pair; of the others those used last, which a part needs again last."""
        while self._kept_bytes > self._keep_bytes and len(self._decoded) > 2:
            address = next(islice(reversed(self._decoded), 2, None))
            self._kept_bytes -= self._decoded.pop(address).nbytes


def stack_mixes(decided: Sequence[DecidedMix]) -> Mix:
    """Decided mixes as tensors over U."""
    boxes = [
        (m.box.top, m.box.left, m.box.top + m.box.height, m.box.left + m.box.width) if m.box else (0, 0, 0, 0)
        for m in decided
    ]
    lam = torch.tensor([m.lam for m in decided], dtype=torch.float32)
    blend = torch.tensor([1.0 if m.box else m.lam for m in decided], dtype=torch.float32)
    return Mix(lam=lam, blend=blend, box=torch.tensor(boxes, dtype=torch.int32).reshape(-1, 4))


def pixel_versions() -> dict[str, str]:
    """Versions of the libraries that touch pixels."""
    import torchvision

    return {
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        **DECODERS,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }

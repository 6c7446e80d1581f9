"""Arrow schemas of every table the pipeline stores.

Plain Parquet with plain columns: any reader can use them without this project.
"""

import pyarrow as pa

INDEX = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # of the tar's members
        pa.field("class", pa.uint16(), nullable=False),
        pa.field("offset", pa.uint64(), nullable=False),  # of the image's bytes in the tar
        pa.field("size", pa.uint32(), nullable=False),  # of the image in bytes
        pa.field("height", pa.uint32(), nullable=False),  # in pixels, as stored: EXIF orientation not applied
        pa.field("width", pa.uint32(), nullable=False),
        pa.field("crc32", pa.uint32(), nullable=False),  # of the image's bytes
        pa.field("name", pa.string(), nullable=False),  # of the image in its source
    ]
)
"""One row a sample, in the tar's order: the row's number is half of the sample's address."""

LISTING = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),  # in the source
        pa.field("class", pa.uint16(), nullable=False),
        pa.field("file", pa.uint32(), nullable=False),  # number of the tar or Parquet file it is in
        pa.field("block", pa.uint32(), nullable=False),  # of Parquet: the row group
        pa.field("offset", pa.uint64(), nullable=False),  # of its bytes in the tar, or its row in the row group
        pa.field("size", pa.uint64(), nullable=False),  # in bytes; of Parquet: of its row group's images
    ]
)
"""One row an image of a source. It is not stored."""

PARTS = pa.schema(
    [
        pa.field("part", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field(
            "files",
            pa.list_(
                pa.field(
                    "element",
                    pa.struct(
                        [
                            pa.field("path", pa.string(), nullable=False),  # below the stage's folder
                            pa.field("bytes", pa.int64(), nullable=False),
                            pa.field("sha256", pa.string(), nullable=False),  # hexadecimal
                        ]
                    ),
                    nullable=False,
                )
            ),
            nullable=False,
        ),
    ]
)
"""One row a part of a manifest, in its order."""

SKIPPED = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),  # in the source
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""One row an image that was found and not written."""

SIGNATURE_SIDE = 4
SIGNATURE_BYTES = SIGNATURE_SIDE * SIGNATURE_SIDE * 3

_ADDRESS = [
    pa.field("shard", pa.uint32(), nullable=False),
    pa.field("row", pa.uint32(), nullable=False),
    pa.field("view", pa.uint16(), nullable=False),
    pa.field("decision", pa.uint16(), nullable=False),  # the teacher's class for the mixed view
]
_LOGITS = pa.field("logits", pa.list_(pa.field("element", pa.float16(), nullable=False)), nullable=False)
_SIGNATURE = pa.field("signature", pa.binary(), nullable=True)  # SIGNATURE_BYTES of the unmixed view, for a few rows

HARD = pa.schema([*_ADDRESS, _SIGNATURE])
"""One row a decision, sorted by row, then view. Samples that sit out a pass have no rows in it.

A signature is the mean of each channel over a 4 x 4 grid of the uint8 view, rounded, as bytes in the order
(grid row, grid column, channel).
"""

TOPK = pa.schema(
    [
        *_ADDRESS,
        pa.field("classes", pa.list_(pa.field("element", pa.uint16(), nullable=False)), nullable=False),
        _LOGITS,
        pa.field("lse_1", pa.float32(), nullable=False),
        pa.field("lse_tau", pa.float32(), nullable=False),
        _SIGNATURE,
    ]
)
"""As `HARD`, with the k likeliest classes, likeliest first, and their logits.

`lse_1` and `lse_tau` are the logarithms of the sum over *all* classes of exp(logit) and exp(logit / tau), with the
logits rounded as they are stored: exp(logit / tau - lse_tau) is a class's exact probability, and what the k lack of 1
is the tail's. The manifest's `made_from.store` says k and tau.
"""

FULL = pa.schema([*_ADDRESS, _LOGITS, _SIGNATURE])
"""As `HARD`, with the logits of all classes, in the classes' order."""

COMPACT_STEP = 0.125
"""Nats between two neighbouring values of `COMPACT`'s logits and of its tails' log-odds."""

COMPACT = pa.schema(
    [
        *_ADDRESS,
        pa.field("others", pa.list_(pa.field("element", pa.uint16(), nullable=False)), nullable=False),
        pa.field("steps", pa.list_(pa.field("element", pa.uint8(), nullable=False)), nullable=False),
        pa.field("tail_1", pa.int8(), nullable=False),
        pa.field("tail_tau", pa.int8(), nullable=False),
        _SIGNATURE,
    ]
)
"""As `HARD`, with the k - 1 next likeliest classes, likeliest first, and how many steps their logits lie below the
decision's.

With s = `COMPACT_STEP`, the classes beyond these k have together the probability t = 1 / (1 + exp(-s · tail_tau)) at
temperature tau; the decision has p = (1 - t) / (1 + Σ exp(-s · steps / tau)), and another class p · exp(-s · steps /
tau). `tail_1` is for temperature 1. The manifest's `made_from.store` says k and tau.
"""

SAMPLED = pa.schema(
    [
        *_ADDRESS,
        pa.field("samples", pa.list_(pa.field("element", pa.uint16(), nullable=False)), nullable=False),
        _SIGNATURE,
    ]
)
"""As `HARD`, with classes drawn from the teacher's distribution at temperature tau, ascending, each as often as it was
drawn: a class's share of the list is an unbiased estimate of its probability."""

LABELS = {"hard": HARD, "topk": TOPK, "full": FULL, "compact": COMPACT, "sampled": SAMPLED}
"""The schema of each `labels.store`."""

_RANKED = pa.list_(pa.field("element", pa.uint16(), nullable=False))
PREDICTIONS = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),  # of the image in its source
        pa.field("class", pa.uint16(), nullable=False),  # its own, as the source has it
        *(pa.field(head, _RANKED, nullable=True) for head in ("top", "top_distillation", "top_fused", "top_softmax")),
    ]
)
"""One row an image, in the gallery's order: the five likeliest classes of each head, likeliest first.

`top` is the class head's, or a model's only one; the others are null where a model has one head: the distillation
head's, those of the mean of both heads' logits, those of the sum of their softmaxes.
"""

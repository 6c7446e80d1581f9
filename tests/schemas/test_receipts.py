"""Receipts: one spelling, a whole round trip, nothing torn accepted, every difference named."""

import hashlib

import pytest

from schemas.errors import MismatchError, UserError
from schemas.receipts import (
    Receipt,
    StoredFile,
    canonical_json,
    differences,
    fingerprint,
    require_unchanged,
    truncate_json,
)

RECEIPT = Receipt(
    part="shard-000003",
    files=(
        StoredFile(path="shard-000003.tar", bytes=10240, sha256="ab" * 32),
        StoredFile(path="shard-000003.parquet", bytes=2048, sha256="cd" * 32),
    ),
    rows=1000,
    made_by="ef" * 32,
    facts={"skipped": 2, "name": "Zürich"},
)


def test_canonical_json_does_not_depend_on_the_order_of_keys():
    assert canonical_json({"b": 1, "a": {"d": 2, "c": 3}}) == canonical_json({"a": {"c": 3, "d": 2}, "b": 1})


def test_canonical_json_is_pinned_to_the_byte():
    assert canonical_json({"b": [1, 2.5, None, True], "a": "ü"}) == '{"a":"ü","b":[1,2.5,null,true]}\n'.encode()


def test_canonical_json_has_no_spelling_for_numbers_that_are_none():
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"loss": float("nan")})


def test_a_fingerprint_is_the_sha256_of_the_canonical_spelling():
    assert fingerprint({"b": 1, "a": 2}) == hashlib.sha256(b'{"a":2,"b":1}\n').hexdigest()


def test_a_receipt_survives_the_round_trip():
    data = RECEIPT.to_json()
    assert Receipt.from_json(data, "here") == RECEIPT
    assert Receipt.from_json(data, "here").to_json() == data


def test_a_receipt_torn_at_any_byte_is_refused():
    data = RECEIPT.to_json()
    for length in range(len(data)):
        with pytest.raises(UserError, match="not a receipt"):
            Receipt.from_json(data[:length], "here")


@pytest.mark.parametrize(
    "data",
    [
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        RECEIPT.to_json() + b"\n",
        RECEIPT.to_json().replace(b'"rows"', b'"lines"'),
        RECEIPT.to_json().replace(b'"bytes"', b'"size"'),
        RECEIPT.to_json().replace(b":", b": "),
        canonical_json({"part": "x", "files": 3, "rows": 1, "made_by": "", "facts": {}}),
    ],
)
def test_what_is_no_receipt_is_refused_in_one_line_that_names_the_file_and_the_mend(data):
    with pytest.raises(UserError) as caught:
        Receipt.from_json(data, "receipts/x.json")
    message = str(caught.value)
    assert message.startswith("receipts/x.json: not a receipt (")
    assert message.endswith("; delete it and run the same command again")
    assert "\n" not in message


def test_equal_values_have_no_differences_whatever_their_order_or_sequence_type():
    assert differences({"a": 1, "b": (1, 2)}, {"b": [1, 2], "a": 1}) == []


def test_every_differing_leaf_is_named_with_both_values():
    old = {"recipe": {"seed": 0, "scale": [0.08, 1.0], "gone": True}, "teacher": "a", "same": 1}
    new = {"recipe": {"seed": 1, "scale": [0.08, 0.5], "new": None}, "teacher": {"model": "a"}, "same": 1}
    assert differences(old, new) == [
        "recipe.gone: true -> null",
        "recipe.scale: [0.08, 1.0] -> [0.08, 0.5]",
        "recipe.seed: 0 -> 1",
        'teacher: "a" -> {"model": "a"}',
    ]


def test_true_is_not_one():
    assert differences({"flag": True}, {"flag": 1}) == ["flag: true -> 1"]


def test_changes_are_refused_as_things_that_do_not_belong_together():
    with pytest.raises(MismatchError) as caught:
        require_unchanged(
            "labels/teacher", {"seed": 0, "size": 1}, {"seed": 1, "size": 2}, "choose another labels.name"
        )
    assert caught.value.exit_code == 4
    assert str(caught.value) == (
        "labels/teacher was made differently (seed: 0 -> 1; size: 1 -> 2); choose another labels.name"
    )


def test_no_change_is_not_refused():
    require_unchanged("labels/teacher", {"seed": 0}, {"seed": 0}, "")


def test_a_long_value_is_cut_to_60_characters():
    assert truncate_json("x" * 58) == '"' + "x" * 58 + '"'
    assert truncate_json("x" * 59) == '"' + "x" * 56 + "..."

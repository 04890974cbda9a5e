"""The saved transformation gives new records the bits that the shards have."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from dpcomm.data import inference, pums, shards
from dpcomm.data.schema import DataError, load


def test_raw_records_become_the_rows_of_the_shards(raw, prepared):
    with open(raw, "rb") as file:
        applied = inference.load(prepared).text(file.read())
    written = np.concatenate([shards.load(prepared, s).rows() for s in ("train", "test")])[:, :-1]
    # The shards leave out who lacks a target and who came before; inference does neither.
    every = {row.tobytes() for row in applied.features}
    assert {row.tobytes() for row in written} <= every
    assert applied.counts.kept == len(applied.features) > len(written)


def test_rows_follow_their_lines_without_target_and_unit():
    text = pums.generate(300, seed=2, dirt=False)
    lines = text.splitlines()
    model = inference.Inference(_transformation())
    whole = model.text(text)
    assert whole.features.shape == (300, 40)
    bare = b"\n".join(b",".join(line.split(b",")[1:-1]) for line in lines)
    assert (model.text(bare).features == whole.features).all()

    lines[7] = lines[7].replace(b",6,", b",7,x,")
    lines[9] = b'"' + lines[9].replace(b",", b'",', 1)
    spoilt = model.text(b"\n".join(lines))
    assert spoilt.source.tolist() == [i for i in range(1, 301) if i != 7]
    assert (spoilt.features == np.delete(whole.features, 6, axis=0)).all()


def test_arrow_table_gives_the_same_rows():
    text = pums.generate(100, seed=3, dirt=False).decode().splitlines()
    columns = list(zip(*(line.split(",") for line in text), strict=True))
    table = pa.table({c[0]: [int(value) for value in c[1:]] for c in columns})
    model = inference.Inference(_transformation())
    rows = model.text("\n".join(text).encode()).features
    assert (model.table(table.drop(["employed", "personid"])).features == rows).all()


def test_missing_feature_column_is_named():
    with pytest.raises(DataError, match="the header lacks puma, educ"):
        inference.Inference(_transformation()).text(
            b"sex,age,income,latino,black,asian,married,uscitizen,disability,militaryservice,"
            b"englishability\n1,40,0,0,0,0,0,1,0,0,1\n"
        )


def _transformation():
    from dpcomm.data.encode import Transformation

    return Transformation(load("pums"))

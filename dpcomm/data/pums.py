"""Generates raw records in the manner of the 2000 census's microdata of California (PUMS).

The records are synthetic: drawn from shares, quantiles and logistic models that `pums-facts.json`
counted from real ones, with the dirt that raw files have. The same seed writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

FACTS = Path(__file__).with_name("pums-facts.json")
_EDUC_GROUPS = ((1, 8), (9, 12), (13, 16))


def generate(records: int | None = None, seed: int = 0, dirt: bool = True) -> bytes:
    """A CSV file with a header, `records` records (1,223,992 by default) and the facts' dirt."""
    facts = json.loads(FACTS.read_text())
    records = facts["records"] if records is None else records
    rng = np.random.Generator(np.random.PCG64(seed))
    people = _people(facts, records, rng)
    text = {name: pl.Series(people[name]).cast(pl.String) for name in facts["columns"]}
    if dirt:
        _spoil_values(text, facts["dirt"], rng)
    lines = pl.DataFrame(text).select(pl.concat_str(pl.all(), separator=",")).to_series()
    header = ",".join(facts["columns"])
    if dirt:
        lines = _spoil_lines(lines, header, facts["dirt"], rng)
    return "\n".join([header, *lines, ""]).encode()


def _choice(rng: np.random.Generator, share: Any, size: int) -> np.ndarray:
    """Indices drawn with the given shares, which need not sum to exactly one."""
    total = np.cumsum(share)
    return np.searchsorted(total, rng.random(size) * total[-1], side="right")


def _people(facts: dict[str, Any], n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Clean records, one column after another, each drawn given those before it."""
    pumas = np.array(list(facts["puma_share"]), np.int64)
    sex = (rng.random(n) < facts["sex_share_of_1"]).astype(np.int64)
    age = np.empty(n, np.int64)
    for s in (0, 1):
        own = np.flatnonzero(sex == s)
        age[own] = facts["age_first"] + _choice(rng, facts[f"age_share_sex{s}"], len(own))
    flags = np.array([[int(c) for c in key] for key in facts["race_share_latino_black_asian"]])
    race = _choice(rng, list(facts["race_share_latino_black_asian"].values()), n)
    latino, black, asian = flags[race].T
    band = np.searchsorted(facts["age_bands"], age, side="right") - 1

    group = np.select([latino == 1, black == 1, asian == 1], [0, 1, 2], 3)
    educ = np.empty(n, np.int64)
    for b in range(len(facts["age_bands"]) - 1):
        for g, name in enumerate(("latino", "black", "asian", "other")):
            own = np.flatnonzero((band == b) & (group == g))
            share = facts["educ_share_by_band_and_group"][f"{b}/{name}"]
            educ[own] = 1 + _choice(rng, share, len(own))

    married, income = np.empty(n, np.int64), np.empty(n, np.int64)
    for b in range(len(facts["age_bands"]) - 1):
        for s in (0, 1):
            own = np.flatnonzero((band == b) & (sex == s))
            share = facts["married_share_by_band_and_sex"][f"{b}/{s}"]
            married[own] = rng.random(len(own)) < share
            for low, high in _EDUC_GROUPS:
                part = own[(educ[own] >= low) & (educ[own] <= high)]
                quantiles = facts["income_by_sex_band_educ"][f"{s}/{b}/{low}-{high}"]
                income[part] = _income(facts, quantiles, rng, len(part))

    people = {
        "personid": np.arange(1, n + 1),
        "state": np.full(n, 6),
        "puma": pumas[_choice(rng, list(facts["puma_share"].values()), n)],
        "sex": sex,
        "age": age,
        "educ": educ,
        "income": income,
        "latino": latino,
        "black": black,
        "asian": asian,
        "married": married,
    }
    for name, model in facts["logistic"].items():
        people[name] = _bernoulli(model, people, rng)
    return people


def _income(
    facts: dict[str, Any], cell: dict[str, Any], rng: np.random.Generator, n: int
) -> np.ndarray:
    """Zero with the cell's share; else interpolated between its quantiles, on a log scale above
    the last one; one in a thousand is a loss."""
    low, high = facts["income_range"]
    levels = np.array([0, 0.001, *facts["income_quantile_levels"]])
    values = np.array([low, 1, *cell["quantiles_of_nonzero"]], np.float64)
    u = rng.random(n)
    drawn = np.interp(u, levels, values)
    beyond = (u - levels[-1]) / (1 - levels[-1])
    tail = values[-1] * (high / values[-1]) ** np.maximum(beyond, 0) ** 3
    drawn = np.where(beyond > 0, tail, drawn)
    zero = rng.random(n) < cell["zero"]
    return np.where(zero, 0, np.rint(drawn)).astype(np.int64)


def _bernoulli(
    model: dict[str, Any], people: dict[str, np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """Draws a flag from its logistic model, the intercept shifted to meet the share wanted."""
    age, income = people["age"] / 50, people["income"]
    derived = {
        "age/50": age,
        "(age/50)^2": age**2,
        "(age/50)^3": age**3,
        "educ/10": people["educ"] / 10,
        "educ>=13": people["educ"] >= 13,
        "sex*married": people["sex"] * people["married"],
        "sign(income)*log1p(|income|)/10": np.sign(income) * np.log1p(np.abs(income)) / 10,
    }
    score = np.zeros(len(age))
    for feature, weight in zip(model["features"], model["coef"], strict=True):
        score += weight * (derived[feature] if feature in derived else people[feature])

    low, high = -20.0, 20.0
    while high - low > 1e-5:
        middle = (low + high) / 2
        share = np.mean(1 / (1 + np.exp(-(score + middle))))
        low, high = (middle, high) if share < model["target_share_california"] else (low, middle)
    # Four digits, so that the last bit of a machine's exp cannot move the records.
    intercept = round(high, 4)
    return (rng.random(len(age)) * (1 + np.exp(-(score + intercept))) < 1).astype(np.int64)


def _spoil_values(
    text: dict[str, pl.Series], dirt: dict[str, Any], rng: np.random.Generator
) -> None:
    def spoil(column: str, share: float, *values: str) -> None:
        hit = np.flatnonzero(rng.random(len(text[column])) < share)
        fault = pl.Series(
            [values[i] for i in rng.integers(len(values), size=len(hit))], dtype=pl.String
        )
        text[column] = text[column].scatter(hit, fault)

    for column, share in dirt["missing (empty or NA)"].items():
        spoil(column, share, "", "NA")
    spoil("employed", dirt["missing target (employed)"], "", "NA")
    for fault, share in {**dirt["invalid codes"], **dirt["not numbers"]}.items():
        column, value = fault.split("=")
        spoil(column, share, value.strip("'"))


def _spoil_lines(
    lines: pl.Series, header: str, dirt: dict[str, Any], rng: np.random.Generator
) -> pl.Series:
    n = len(lines)
    copies = np.flatnonzero(rng.random(n) < dirt["duplicated records"])
    lines = lines.scatter(copies, lines[rng.integers(n, size=len(copies))])
    longer = np.flatnonzero(rng.random(n) < dirt["lines with two fields too many"])
    lines = lines.scatter(longer, lines[longer] + ",0,0")
    shorter = np.flatnonzero(rng.random(n) < dirt["truncated lines"])
    cut = [line[: rng.integers(line.rindex(",")) + 1].rstrip(",") for line in lines[shorter]]
    lines = lines.scatter(shorter, pl.Series(cut, dtype=pl.String))
    repeated = np.sort(rng.integers(n, size=dirt["header repeated inside the file"]))
    parts = np.split(np.arange(n), repeated)
    pieces = [lines[part] for part in parts]
    return pl.concat([p for piece in pieces for p in (piece, pl.Series([header]))][:-1])


def main() -> None:
    parser = argparse.ArgumentParser("dpcomm.data.pums", description=__doc__)
    parser.add_argument("output", type=Path, help="CSV file to write")
    parser.add_argument("--records", type=int, help="1,223,992 by default")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(generate(options.records, options.seed))


if __name__ == "__main__":
    main()

"""Reader of the Open Bandit data (Saito et al., 2020, arXiv 2008.07146): impressions logged with the chance at which each was shown.

A tar archive or a directory of POLICY/CAMPAIGN/, in each CAMPAIGN.csv and item_context.csv. What identifies a shopper there is a segment: four
hashed traits.
"""

import csv
import io
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path, PurePath
from typing import NamedTuple, TypeVar

from features.rows import CatalogItem
from liveshelf.errors import InvalidEventError
from liveshelf.evaluation.visits import archived

ITEMS = "item_context.csv"
Parsed = TypeVar("Parsed")
TRAITS = tuple(f"user_feature_{n}" for n in range(4))


class Round(NamedTuple):
    """One item shown at one place."""

    time_ms: int
    policy: str
    campaign: str
    shopper: str
    item: str
    position: int
    """From 0."""
    clicked: bool
    propensity: float
    """Of the policy to show this item at this place."""


class Campaign(NamedTuple):
    name: str
    items: list[CatalogItem]
    rounds: list[Round]
    """Of all policies, by time."""


def read(path: Path) -> list[Campaign]:
    """
    Raises:
        InvalidEventError: no such files are there, or a line of them is not in the format.
    """
    items: dict[str, dict[str, CatalogItem]] = {}
    rounds: dict[str, list[Round]] = {}
    for name, text in _texts(path):
        file = PurePath(name)
        if len(file.parts) < 3 or file.suffix != ".csv":
            continue
        policy, campaign = file.parts[-3:-1]
        if file.name == ITEMS:
            items.setdefault(campaign, {}).update(
                {item.item_id: item for item in _parsed(name, text, partial(_item, campaign=campaign))}
            )
        else:
            rounds.setdefault(campaign, []).extend(_parsed(name, text, partial(_round, policy=policy, campaign=campaign)))
    if not rounds or rounds.keys() != items.keys():
        raise InvalidEventError(str(path), sorted(rounds.keys() ^ items.keys()) or "no such file", f"POLICY/CAMPAIGN/ with {ITEMS}")
    return [
        Campaign(name, list(items[name].values()), sorted(found, key=lambda one: one.time_ms))
        for name, found in sorted(rounds.items())
    ]


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    if path.is_dir():
        yield from ((str(file.relative_to(path.parent)), file.read_text()) for file in sorted(path.rglob("*.csv")))
    else:
        yield from archived(path)


def _parsed(name: str, text: str, parse: Callable[[dict[str, str]], Parsed]) -> Iterator[Parsed]:
    """Every line of a file, as `parse` reads it; its errors name the line."""
    for number, row in enumerate(csv.DictReader(io.StringIO(text)), start=2):
        try:
            yield parse(row)
        except KeyError as error:
            raise InvalidEventError(f"{name}:1", ",".join(row)[:200], f"a header with {error.args[0]}") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidEventError(f"{name}:{number}", ",".join(map(str, row.values()))[:200], str(error)) from None


def _named(campaign: str, item: str) -> str:
    """Items are numbered within their campaign."""
    return f"{campaign}/{item}"


def _item(row: dict[str, str], campaign: str) -> CatalogItem:
    return CatalogItem(_named(campaign, row["item_id"]), item_category=row["item_feature_1"], item_brand=row["item_feature_2"])


def _round(row: dict[str, str], policy: str, campaign: str) -> Round:
    position, propensity = int(row["position"]), float(row["propensity_score"])
    if position < 1 or not 0 < propensity <= 1 or row["click"] not in ("0", "1"):
        raise ValueError("a position from 1 on, a click of 0 or 1, and a propensity above 0 and at most 1")
    return Round(
        time_ms=int(datetime.fromisoformat(row["timestamp"]).timestamp() * 1000),
        policy=policy,
        campaign=campaign,
        shopper="/".join(row[trait] for trait in TRAITS),
        item=_named(campaign, row["item_id"]),
        position=position - 1,
        clicked=row["click"] == "1",
        propensity=propensity,
    )

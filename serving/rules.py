"""The shop's own rules for its shelves: pin, boost, bury and exclude, from a YAML settings file that is read again whenever it changes.

    margins:                       # share of the price that is profit; the most specific one counts
      brand: {Acme: 0.3}
      category: {shoes: 0.1}
      item: {sku-1: 0.5}
    rules:
      - {name: autumn sale, do: boost, factor: 2, category: [coats], placement: [home]}
      - {name: no loss, do: exclude, margin_below: 0.05}
      - {name: hero, do: pin, item: [sku-1], position: 0, placement: [home]}

What a rule says of items (item, category, brand, margin) narrows it: all must hold. Without placements it holds everywhere.
"""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import structlog
from msgspec import Meta
from prometheus_client import Counter, Gauge

from features.catalog import Catalog, Rows
from features.located import line_of, parse_yaml
from liveshelf.errors import SettingsError

log = structlog.get_logger()

LOOK_EVERY_S = 1.0  # a stat of one file
BURY_DEFAULT, BOOST_DEFAULT = 0.1, 2.0

ACTIVE = Gauge("liveshelf_scoring_rules", "Business rules in force")
REFUSED = Counter("liveshelf_scoring_rules_refused_total", "Rules files that were not valid: the rules before go on")

Text = Annotated[str, Meta(min_length=1, max_length=512)]
Texts = Annotated[list[Text], Meta(max_length=10_000)]
Margin = Annotated[float, Meta(ge=-1, le=1)]
Mask = npt.NDArray[np.bool_]


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule. `factor` multiplies scores (boost above 1, bury below); `position` is where a pinned item stands, from 0."""

    name: Text
    do: Literal["pin", "boost", "bury", "exclude"]
    placement: Texts = []
    item: Texts = []
    category: Texts = []
    brand: Texts = []
    margin_below: Margin | None = None
    margin_above: Margin | None = None
    factor: Annotated[float, Meta(gt=0, le=1_000)] | None = None
    position: Annotated[int, Meta(ge=0, lt=100)] | None = None


class Margins(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    item: dict[Text, Margin] = {}
    category: dict[Text, Margin] = {}
    brand: dict[Text, Margin] = {}


class RulesFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    rules: Annotated[list[Rule], Meta(max_length=200)] = []
    margins: Margins = Margins()


class Rules:
    """A valid set of rules, applied to rows of a catalog. An item whose margin is not known meets no margin condition."""

    def __init__(self, file: RulesFile) -> None:
        self._file = file
        self._any_margin = any(file.margins.item) or any(file.margins.category) or any(file.margins.brand)

    def __len__(self) -> int:
        return len(self._file.rules)

    def allowed(self, rows: Rows, catalog: Catalog, placement: str) -> Mask | None:
        """[len(rows)] what no rule excludes; None when nothing is excluded here."""
        excluded = [self._meets(rule, rows, catalog) for rule in self._here("exclude", placement)]
        return ~np.logical_or.reduce(excluded) if excluded else None

    def factors(self, rows: Rows, catalog: Catalog, placement: str) -> npt.NDArray[np.float64] | None:
        """[len(rows)] what scores are multiplied by; None when no rule says."""
        total: npt.NDArray[np.float64] | None = None
        for rule in (*self._here("boost", placement), *self._here("bury", placement)):
            factor = rule.factor or (BOOST_DEFAULT if rule.do == "boost" else BURY_DEFAULT)
            if total is None:
                total = np.ones(len(rows))
            total[self._meets(rule, rows, catalog)] *= factor
        return total

    def pins(self, catalog: Catalog, placement: str) -> list[tuple[int, int]]:
        """(position, row) in the order of positions: a rule's items follow each other; those unavailable or unknown are passed over."""
        pinned: dict[int, int] = {}
        for rule in self._here("pin", placement):
            position = rule.position or 0
            for item in rule.item:
                at = catalog.find(item)
                if at < 0 or not catalog.available[at] or at in pinned.values():
                    continue
                while position in pinned:  # the first rule of a position keeps it
                    position += 1
                pinned[position] = at
        return sorted(pinned.items())

    def _here(self, do: str, placement: str) -> Iterable[Rule]:
        return (rule for rule in self._file.rules if rule.do == do and (not rule.placement or placement in rule.placement))

    def _meets(self, rule: Rule, rows: Rows, catalog: Catalog) -> Mask:
        meets = rows >= 0
        if rule.item:
            meets &= np.isin(rows, catalog.rows(rule.item))
        for values, field in ((rule.category, "item_category"), (rule.brand, "item_brand")):
            if values:
                codes = [code for value in values if (code := catalog.codes[field].get(value)) is not None]
                meets &= np.isin(catalog.code[field][rows], codes)
        if rule.margin_below is not None or rule.margin_above is not None:
            margin = self._margin(rows, catalog)
            if rule.margin_below is not None:
                meets &= margin < rule.margin_below  # NaN, the unknown margin, is below nothing
            if rule.margin_above is not None:
                meets &= margin > rule.margin_above
        result: Mask = meets
        return result

    def _margin(self, rows: Rows, catalog: Catalog) -> npt.NDArray[np.float64]:
        """[len(rows)] NaN where nobody said."""
        margins = self._file.margins
        out = np.full(len(rows), np.nan)
        for known, field in ((margins.brand, "item_brand"), (margins.category, "item_category")):
            for value, margin in known.items():
                if (code := catalog.codes[field].get(value)) is not None:
                    out[catalog.code[field][rows] == code] = margin
        for item, margin in margins.item.items():
            if (at := catalog.find(item)) >= 0:
                out[rows == at] = margin
        return out


NO_RULES = Rules(RulesFile())


def parse_rules(text: str, source: str) -> Rules:
    """`text` as rules; `source` names it in errors.

    Raises:
        SettingsError: not valid; the message names file, line, value and what was expected.
    """
    file, node = parse_yaml(text, source, RulesFile) if text.strip() else (RulesFile(), None)
    for path, problem in _inconsistencies(file):
        raise SettingsError(f"{source}, line {line_of(node, path)}: {problem}")
    return Rules(file)


def _inconsistencies(file: RulesFile) -> Iterable[tuple[str, str]]:
    """(path, what is wrong) for everything that types do not say."""
    first: dict[str, int] = {}
    for i, rule in enumerate(file.rules):
        at = f".rules[{i}]"
        if rule.name in first:
            yield f"{at}.name", f"name `{rule.name}` is taken by entry {first[rule.name] + 1}; names must differ"
        first[rule.name] = i
        narrowed = rule.item or rule.category or rule.brand or rule.margin_below is not None or rule.margin_above is not None
        if not narrowed:
            yield at, f"`{rule.name}` says of no item, category, brand or margin: it would hold for everything"
        if rule.do == "pin" and (not rule.item or rule.category or rule.brand):
            yield at, f"`{rule.name}` pins, which needs `item`, a list of ids, and neither category nor brand"
        if rule.do != "pin" and rule.position is not None:
            yield f"{at}.position", f"`{rule.name}`: only a pin has a position"
        if rule.factor is not None and rule.do not in ("boost", "bury"):
            yield f"{at}.factor", f"`{rule.name}`: only boost and bury have a factor"
        if rule.do == "boost" and rule.factor is not None and rule.factor < 1:
            yield f"{at}.factor", f"`{rule.name}` boosts by {rule.factor:g}, expected at least 1; below that, bury"
        if rule.do == "bury" and rule.factor is not None and rule.factor > 1:
            yield f"{at}.factor", f"`{rule.name}` buries by {rule.factor:g}, expected at most 1; above that, boost"
        if (rule.margin_below is not None or rule.margin_above is not None) and file.margins == Margins():
            yield at, f"`{rule.name}` asks for a margin, but `margins` says none"


class RulesFollower:
    """The rules in force: those of the file's latest valid content."""

    def __init__(self, file: str) -> None:
        self.rules = NO_RULES
        self._path = Path(file).expanduser() if file else None
        self._seen: tuple[Any, ...] | None = None
        ACTIVE.set(0)

    def read(self) -> None:
        """Take the file as it stands now.

        Raises:
            SettingsError: it cannot be read or is not valid; the rules before stay.
        """
        if self._path is None:
            return
        try:
            stat = self._path.stat()
            self._seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            text = self._path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            self._seen = None if self._seen is None else (str(error),)
            raise SettingsError(f"the rules file {self._path} cannot be read: {error}") from None
        self.rules = parse_rules(text, str(self._path))
        ACTIVE.set(len(self.rules))
        log.info("rules in force", file=str(self._path), rules=len(self.rules))

    async def follow(self) -> None:
        """Look every LOOK_EVERY_S; a file that is not valid is refused, said and counted once."""
        while self._path is not None:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                stat = self._path.stat()
                changed = (stat.st_mtime_ns, stat.st_size, stat.st_ino) != self._seen
            except OSError as error:
                changed = self._seen != (str(error),)
            if not changed:
                continue
            try:
                self.read()
            except SettingsError as error:
                REFUSED.inc()
                log.error("rules refused, those before stay in force", error=str(error), rules=len(self.rules))

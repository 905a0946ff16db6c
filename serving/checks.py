"""Messages of the API → queries of the pipeline, or every reason why not. Pure."""

import math
from collections.abc import Sequence

from liveshelf.v1 import recommendation_pb2 as pb
from serving.query import ANYTHING, Filters, Query
from serving.status import Violation, invalid, quoted, violation
from streams.pseudonym import Pseudonyms

COUNT_DEFAULT, COUNT_MAX = 10, 100
CONTEXT_MAX, EXCLUDE_MAX, CANDIDATES_MAX = 20, 1_000, 2_000
FILTER_VALUES_MAX = 50
ITEM_ID_CHARS_MAX = 128
SHOPPER_ID_CHARS_MAX = 128
PLACEMENT_CHARS_MAX = 128
FILTER_CHARS_MAX = 512  # as long as a category or brand may be in the catalog
BATCH_MAX = 32  # a page with more shelves than this has been seen by nobody
BATCH_CANDIDATES_MAX = 10_000  # of one BatchRank: five lists of the longest kind, or 300 for each of 32


class Checks:
    """Collects what is wrong with one request, so that a caller learns of everything at once."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def refuse(self, field: str, got: object, expected: str) -> None:
        self.violations.append(violation(field, got, expected, "INVALID_FIELD"))

    def done(self) -> None:
        """Raises ApiError INVALID_ARGUMENT if anything was refused."""
        if self.violations:
            raise invalid(self.violations)

    def count(self, count: int) -> int:
        if not 0 <= count <= COUNT_MAX:
            self.refuse("count", count, f"1 to {COUNT_MAX}, or 0 for {COUNT_DEFAULT}")
        return count or COUNT_DEFAULT

    def ids(self, field: str, ids: Sequence[str], count_max: int) -> tuple[str, ...]:
        if len(ids) > count_max:
            self.refuse(field, f"{len(ids)} items", f"at most {count_max}")
            return ()
        ids = tuple(ids)  # once: a message makes its strings anew each time they are looked at
        for index, item in enumerate(ids):
            if not 1 <= len(item) <= ITEM_ID_CHARS_MAX:
                self.refuse(f"{field}[{index}]", f"an id of {len(item)} characters", f"1 to {ITEM_ID_CHARS_MAX}")
                break  # the first tells enough: a list of 2,000 wrong ones is no better described by 2,000 violations
        return ids

    def item(self, item: str) -> str:
        if not 1 <= len(item) <= ITEM_ID_CHARS_MAX:
            self.refuse("item_id", f"an id of {len(item)} characters", f"1 to {ITEM_ID_CHARS_MAX}")
        return item

    def candidates(self, ids: Sequence[str]) -> tuple[str, ...]:
        candidates = self.ids("item_ids", ids, CANDIDATES_MAX)
        if not ids:
            self.refuse("item_ids", "none", f"1 to {CANDIDATES_MAX} candidates")
        if len(set(candidates)) < len(candidates):
            index = next(at for at, item in enumerate(candidates) if item in candidates[:at])
            self.refuse(f"item_ids[{index}]", f"{quoted(candidates[index])} once more", "distinct candidates")
        return candidates

    def who(self, shopper: pb.Shopper, pseudonyms: Pseudonyms) -> tuple[str, str]:
        """The pseudonyms of the shopper and of the visit."""
        ids = {"user_id": shopper.user_id, "client_id": shopper.client_id, "session_id": shopper.session_id}
        if not any(ids.values()):
            self.refuse("shopper", "no id", "at least one of user_id, client_id, session_id")
        for name, value in ids.items():
            if len(value) > SHOPPER_ID_CHARS_MAX:
                self.refuse(f"shopper.{name}", f"an id of {len(value)} characters", f"at most {SHOPPER_ID_CHARS_MAX}")
        return pseudonyms.shopper(*ids.values()), pseudonyms.session(shopper.session_id)

    def placement(self, placement: str) -> str:
        if len(placement) > PLACEMENT_CHARS_MAX:
            self.refuse("placement", f"{len(placement)} characters", f"at most {PLACEMENT_CHARS_MAX}")
        return placement

    def filters(self, request: pb.RecommendRequest | pb.SimilarItemsRequest) -> Filters:
        if not request.HasField("filters"):
            return ANYTHING
        wanted = request.filters
        for name, values in (("categories", wanted.categories), ("brands", wanted.brands)):
            if len(values) > FILTER_VALUES_MAX:
                self.refuse(f"filters.{name}", f"{len(values)} values", f"at most {FILTER_VALUES_MAX}")
            for index, value in enumerate(values[:FILTER_VALUES_MAX]):
                if not 1 <= len(value) <= FILTER_CHARS_MAX:
                    self.refuse(f"filters.{name}[{index}]", f"{len(value)} characters", f"1 to {FILTER_CHARS_MAX}")
        bounds: dict[str, float | None] = {}
        for name in ("price_min", "price_max"):
            bounds[name] = getattr(wanted, name) if wanted.HasField(name) else None
            if bounds[name] is not None and not (math.isfinite(bounds[name] or 0.0) and (bounds[name] or 0.0) >= 0):
                self.refuse(f"filters.{name}", bounds[name], "a price, from 0")
        low, high = bounds["price_min"], bounds["price_max"]
        if low is not None and high is not None and low > high:
            self.refuse("filters.price_max", high, f"at least price_min, which is {low}")
        return Filters(frozenset(wanted.categories), frozenset(wanted.brands), low, high, wanted.include_unavailable)


def recommend_query(request: pb.RecommendRequest, pseudonyms: Pseudonyms) -> Query:
    """Raises ApiError INVALID_ARGUMENT, as do the others."""
    checks = Checks()
    shopper, session = checks.who(request.shopper, pseudonyms)
    query = Query(
        shopper=shopper,
        session=session,
        placement=checks.placement(request.placement),
        count=checks.count(request.count),
        context=checks.ids("context_item_ids", request.context_item_ids, CONTEXT_MAX),
        exclude=frozenset(checks.ids("exclude_item_ids", request.exclude_item_ids, EXCLUDE_MAX)),
        filters=checks.filters(request),
    )
    checks.done()
    return query


def rank_query(request: pb.RankRequest, pseudonyms: Pseudonyms) -> Query:
    checks = Checks()
    candidates = checks.candidates(request.item_ids)
    shopper, session = checks.who(request.shopper, pseudonyms)
    query = Query(
        shopper=shopper,
        session=session,
        placement=checks.placement(request.placement),
        count=len(candidates),
        context=checks.ids("context_item_ids", request.context_item_ids, CONTEXT_MAX),
        candidates=candidates,
    )
    checks.done()
    return query


def similar_query(request: pb.SimilarItemsRequest) -> tuple[str, int, frozenset[str], Filters]:
    """item, count, what to leave out, what may be shown."""
    checks = Checks()
    item, count = checks.item(request.item_id), checks.count(request.count)
    exclude = frozenset(checks.ids("exclude_item_ids", request.exclude_item_ids, EXCLUDE_MAX))
    filters = checks.filters(request)
    checks.done()
    return item, count, exclude, filters


def check_batch(requests: Sequence[object]) -> None:
    checks = Checks()
    if not 1 <= len(requests) <= BATCH_MAX:
        checks.refuse("requests", f"{len(requests)} requests", f"1 to {BATCH_MAX}")
    elif (together := sum(len(r.item_ids) for r in requests if isinstance(r, pb.RankRequest))) > BATCH_CANDIDATES_MAX:
        checks.refuse("requests", f"{together} candidates together", f"at most {BATCH_CANDIDATES_MAX}")
    checks.done()

from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Shopper(_message.Message):
    __slots__ = ("user_id", "client_id", "session_id")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    client_id: str
    session_id: str
    def __init__(self, user_id: _Optional[str] = ..., client_id: _Optional[str] = ..., session_id: _Optional[str] = ...) -> None: ...

class Filters(_message.Message):
    __slots__ = ("categories", "brands", "price_min", "price_max", "include_unavailable")
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    BRANDS_FIELD_NUMBER: _ClassVar[int]
    PRICE_MIN_FIELD_NUMBER: _ClassVar[int]
    PRICE_MAX_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_UNAVAILABLE_FIELD_NUMBER: _ClassVar[int]
    categories: _containers.RepeatedScalarFieldContainer[str]
    brands: _containers.RepeatedScalarFieldContainer[str]
    price_min: float
    price_max: float
    include_unavailable: bool
    def __init__(self, categories: _Optional[_Iterable[str]] = ..., brands: _Optional[_Iterable[str]] = ..., price_min: _Optional[float] = ..., price_max: _Optional[float] = ..., include_unavailable: bool = ...) -> None: ...

class RecommendRequest(_message.Message):
    __slots__ = ("shopper", "count", "placement", "context_item_ids", "exclude_item_ids", "filters", "with_timings")
    SHOPPER_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    WITH_TIMINGS_FIELD_NUMBER: _ClassVar[int]
    shopper: Shopper
    count: int
    placement: str
    context_item_ids: _containers.RepeatedScalarFieldContainer[str]
    exclude_item_ids: _containers.RepeatedScalarFieldContainer[str]
    filters: Filters
    with_timings: bool
    def __init__(self, shopper: _Optional[_Union[Shopper, _Mapping]] = ..., count: _Optional[int] = ..., placement: _Optional[str] = ..., context_item_ids: _Optional[_Iterable[str]] = ..., exclude_item_ids: _Optional[_Iterable[str]] = ..., filters: _Optional[_Union[Filters, _Mapping]] = ..., with_timings: bool = ...) -> None: ...

class RankRequest(_message.Message):
    __slots__ = ("shopper", "item_ids", "placement", "context_item_ids", "with_timings")
    SHOPPER_FIELD_NUMBER: _ClassVar[int]
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    WITH_TIMINGS_FIELD_NUMBER: _ClassVar[int]
    shopper: Shopper
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    placement: str
    context_item_ids: _containers.RepeatedScalarFieldContainer[str]
    with_timings: bool
    def __init__(self, shopper: _Optional[_Union[Shopper, _Mapping]] = ..., item_ids: _Optional[_Iterable[str]] = ..., placement: _Optional[str] = ..., context_item_ids: _Optional[_Iterable[str]] = ..., with_timings: bool = ...) -> None: ...

class SimilarItemsRequest(_message.Message):
    __slots__ = ("item_id", "count", "filters", "exclude_item_ids", "with_timings")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    WITH_TIMINGS_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    count: int
    filters: Filters
    exclude_item_ids: _containers.RepeatedScalarFieldContainer[str]
    with_timings: bool
    def __init__(self, item_id: _Optional[str] = ..., count: _Optional[int] = ..., filters: _Optional[_Union[Filters, _Mapping]] = ..., exclude_item_ids: _Optional[_Iterable[str]] = ..., with_timings: bool = ...) -> None: ...

class ScoredItem(_message.Message):
    __slots__ = ("item_id", "position", "score", "click", "cart", "purchase", "candidate_source", "propensity", "title", "category", "brand", "price")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    CLICK_FIELD_NUMBER: _ClassVar[int]
    CART_FIELD_NUMBER: _ClassVar[int]
    PURCHASE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_SOURCE_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    BRAND_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    position: int
    score: float
    click: float
    cart: float
    purchase: float
    candidate_source: str
    propensity: float
    title: str
    category: str
    brand: str
    price: float
    def __init__(self, item_id: _Optional[str] = ..., position: _Optional[int] = ..., score: _Optional[float] = ..., click: _Optional[float] = ..., cart: _Optional[float] = ..., purchase: _Optional[float] = ..., candidate_source: _Optional[str] = ..., propensity: _Optional[float] = ..., title: _Optional[str] = ..., category: _Optional[str] = ..., brand: _Optional[str] = ..., price: _Optional[float] = ...) -> None: ...

class StageTiming(_message.Message):
    __slots__ = ("stage", "ms")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    ms: float
    def __init__(self, stage: _Optional[str] = ..., ms: _Optional[float] = ...) -> None: ...

class RecommendResponse(_message.Message):
    __slots__ = ("request_id", "items", "model_version", "feature_version", "degraded", "degraded_reason", "features_offset", "timings")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    FEATURE_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_REASON_FIELD_NUMBER: _ClassVar[int]
    FEATURES_OFFSET_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    items: _containers.RepeatedCompositeFieldContainer[ScoredItem]
    model_version: int
    feature_version: str
    degraded: bool
    degraded_reason: str
    features_offset: int
    timings: _containers.RepeatedCompositeFieldContainer[StageTiming]
    def __init__(self, request_id: _Optional[str] = ..., items: _Optional[_Iterable[_Union[ScoredItem, _Mapping]]] = ..., model_version: _Optional[int] = ..., feature_version: _Optional[str] = ..., degraded: bool = ..., degraded_reason: _Optional[str] = ..., features_offset: _Optional[int] = ..., timings: _Optional[_Iterable[_Union[StageTiming, _Mapping]]] = ...) -> None: ...

class RankResponse(_message.Message):
    __slots__ = ("request_id", "items", "model_version", "feature_version", "degraded", "degraded_reason", "timings")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    FEATURE_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_REASON_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    items: _containers.RepeatedCompositeFieldContainer[ScoredItem]
    model_version: int
    feature_version: str
    degraded: bool
    degraded_reason: str
    timings: _containers.RepeatedCompositeFieldContainer[StageTiming]
    def __init__(self, request_id: _Optional[str] = ..., items: _Optional[_Iterable[_Union[ScoredItem, _Mapping]]] = ..., model_version: _Optional[int] = ..., feature_version: _Optional[str] = ..., degraded: bool = ..., degraded_reason: _Optional[str] = ..., timings: _Optional[_Iterable[_Union[StageTiming, _Mapping]]] = ...) -> None: ...

class SimilarItemsResponse(_message.Message):
    __slots__ = ("items", "request_id", "feature_version", "degraded", "degraded_reason", "timings")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FEATURE_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_REASON_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ScoredItem]
    request_id: str
    feature_version: str
    degraded: bool
    degraded_reason: str
    timings: _containers.RepeatedCompositeFieldContainer[StageTiming]
    def __init__(self, items: _Optional[_Iterable[_Union[ScoredItem, _Mapping]]] = ..., request_id: _Optional[str] = ..., feature_version: _Optional[str] = ..., degraded: bool = ..., degraded_reason: _Optional[str] = ..., timings: _Optional[_Iterable[_Union[StageTiming, _Mapping]]] = ...) -> None: ...

class BatchRecommendRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RecommendRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[RecommendRequest, _Mapping]]] = ...) -> None: ...

class BatchRecommendResponse(_message.Message):
    __slots__ = ("results",)
    class Result(_message.Message):
        __slots__ = ("response", "error")
        RESPONSE_FIELD_NUMBER: _ClassVar[int]
        ERROR_FIELD_NUMBER: _ClassVar[int]
        response: RecommendResponse
        error: _status_pb2.Status
        def __init__(self, response: _Optional[_Union[RecommendResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[BatchRecommendResponse.Result]
    def __init__(self, results: _Optional[_Iterable[_Union[BatchRecommendResponse.Result, _Mapping]]] = ...) -> None: ...

class BatchRankRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RankRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[RankRequest, _Mapping]]] = ...) -> None: ...

class BatchRankResponse(_message.Message):
    __slots__ = ("results",)
    class Result(_message.Message):
        __slots__ = ("response", "error")
        RESPONSE_FIELD_NUMBER: _ClassVar[int]
        ERROR_FIELD_NUMBER: _ClassVar[int]
        response: RankResponse
        error: _status_pb2.Status
        def __init__(self, response: _Optional[_Union[RankResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[BatchRankResponse.Result]
    def __init__(self, results: _Optional[_Iterable[_Union[BatchRankResponse.Result, _Mapping]]] = ...) -> None: ...

class BatchSimilarItemsRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[SimilarItemsRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[SimilarItemsRequest, _Mapping]]] = ...) -> None: ...

class BatchSimilarItemsResponse(_message.Message):
    __slots__ = ("results",)
    class Result(_message.Message):
        __slots__ = ("response", "error")
        RESPONSE_FIELD_NUMBER: _ClassVar[int]
        ERROR_FIELD_NUMBER: _ClassVar[int]
        response: SimilarItemsResponse
        error: _status_pb2.Status
        def __init__(self, response: _Optional[_Union[SimilarItemsResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[BatchSimilarItemsResponse.Result]
    def __init__(self, results: _Optional[_Iterable[_Union[BatchSimilarItemsResponse.Result, _Mapping]]] = ...) -> None: ...

class EventItem(_message.Message):
    __slots__ = ("item_id", "item_name", "item_category", "item_brand", "price", "quantity", "index")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_NAME_FIELD_NUMBER: _ClassVar[int]
    ITEM_CATEGORY_FIELD_NUMBER: _ClassVar[int]
    ITEM_BRAND_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    item_name: str
    item_category: str
    item_brand: str
    price: float
    quantity: int
    index: int
    def __init__(self, item_id: _Optional[str] = ..., item_name: _Optional[str] = ..., item_category: _Optional[str] = ..., item_brand: _Optional[str] = ..., price: _Optional[float] = ..., quantity: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("name", "event_id", "user_id", "client_id", "session_id", "timestamp_micros", "items", "request_id", "transaction_id", "search_term", "currency", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_MICROS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_ID_FIELD_NUMBER: _ClassVar[int]
    SEARCH_TERM_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    event_id: str
    user_id: str
    client_id: str
    session_id: str
    timestamp_micros: int
    items: _containers.RepeatedCompositeFieldContainer[EventItem]
    request_id: str
    transaction_id: str
    search_term: str
    currency: str
    value: float
    def __init__(self, name: _Optional[str] = ..., event_id: _Optional[str] = ..., user_id: _Optional[str] = ..., client_id: _Optional[str] = ..., session_id: _Optional[str] = ..., timestamp_micros: _Optional[int] = ..., items: _Optional[_Iterable[_Union[EventItem, _Mapping]]] = ..., request_id: _Optional[str] = ..., transaction_id: _Optional[str] = ..., search_term: _Optional[str] = ..., currency: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class RecordEventsRequest(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class EventRefusal(_message.Message):
    __slots__ = ("index", "field", "value", "expected", "reason")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    index: int
    field: str
    value: str
    expected: str
    reason: str
    def __init__(self, index: _Optional[int] = ..., field: _Optional[str] = ..., value: _Optional[str] = ..., expected: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RecordEventsResponse(_message.Message):
    __slots__ = ("accepted", "refusals")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    refusals: _containers.RepeatedCompositeFieldContainer[EventRefusal]
    def __init__(self, accepted: _Optional[int] = ..., refusals: _Optional[_Iterable[_Union[EventRefusal, _Mapping]]] = ...) -> None: ...

"""`liveshelf features show`: one shopper's or item's features, valued now, and where each came from."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from liveshelf.errors import NotFoundError, SettingsError

if TYPE_CHECKING:
    from features.feature_set import FeatureSet
    from features.store import FeatureRows

STORE_TIMEOUT_S = 5.0


def command(
    ctx: typer.Context,
    shopper: Annotated[str, typer.Argument(help="The shopper's user, client or session id; `--by` says which.")] = "",
    by: Annotated[str, typer.Option(help="Which id it is: user, client or session.")] = "client",
    item: Annotated[str, typer.Option(help="Show this item instead of a shopper.")] = "",
    version: Annotated[str, typer.Option(help="The feature version (default: the newest).")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show the features of one shopper, or of one item.

    Counts are decayed to now, times are told as ages, and each row says up to which record of the log it was folded. Ids are given as the
    shop knows them; what is stored, and shown, is their pseudonym. Examples:

        liveshelf features show 1234.5678            (a browser's GA4 client_id)

        liveshelf features show 11 --by session

        liveshelf features show --item sku-42
    """
    import msgspec

    if bool(shopper) == bool(item):
        raise SettingsError("name either a SHOPPER or an --item. Try `liveshelf features show --help`.")
    if by not in ("user", "client", "session"):
        raise SettingsError(f"--by {by}: expected user, client or session")
    from features.store import FeatureRows

    rows = FeatureRows(ctx.obj, STORE_TIMEOUT_S)
    features = _features(rows, version)
    now_ms = int(time.time() * 1000)
    found = _item(ctx.obj, rows, features, item, now_ms) if item else _shopper(ctx.obj, rows, features, shopper, by, now_ms)
    if as_json:
        typer.echo(msgspec.json.encode(found).decode())
        return
    _print(found)


def _features(rows: "FeatureRows", version: str) -> "FeatureSet":
    if not version:
        return rows.newest()
    features = rows.feature_set(version)
    if features is None:
        raise NotFoundError(f"feature version {version!r} is not registered; there are: {', '.join(rows.feature_sets())}")
    return features


def _shopper(settings: Any, rows: "FeatureRows", features: "FeatureSet", shopper: str, by: str, now_ms: int) -> dict[str, Any]:
    from features.readable import shopper_features
    from streams.pseudonym import Pseudonyms

    ids = {"user": "", "client": "", "session": ""} | {by: shopper}
    pseudonym = Pseudonyms.open(settings).shopper(ids["user"], ids["client"], ids["session"])
    found = rows.read_shoppers([pseudonym], features)
    if pseudonym not in found:
        raise NotFoundError(
            f"no events of {by} {shopper!r} have been folded. Is it a {by} id (see --by)? Are the agents up (`liveshelf status`)?"
        )
    return shopper_features(features, found[pseudonym], now_ms)


def _item(settings: Any, rows: "FeatureRows", features: "FeatureSet", item: str, now_ms: int) -> dict[str, Any]:
    from features.readable import item_features

    catalog = rows.read_catalog([item]).get(item)
    found = rows.read_items([(item, partition) for partition in range(settings.partitions)], features)
    if catalog is None and not found:
        raise NotFoundError(
            f"item {item!r} is neither in the catalog nor in any event so far. Check its spelling; ids are the shop's own."
        )
    return item_features(features, item, list(found.values()), catalog, now_ms)


def _print(found: dict[str, Any]) -> None:
    from rich.table import Table

    from liveshelf.cli.console import table_console

    console = table_console()
    whose = "item" if "item" in found else "shopper"
    sources = ", ".join(f"{source['from']} (latest event {source['latest_event']})" for source in found["sources"])
    console.print(f"{whose} {found[whose]}", style="bold", highlight=False, markup=False)
    console.print(f"feature version {found['version']}, folded up to {sources or 'nothing'}", highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("feature", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("value", overflow="fold")
    for name, feature in found["features"].items():
        if feature["kind"] != "last_n":
            table.add_row(name, feature["kind"], _words(feature["value"]))
    console.print(table)
    for name, feature in found["features"].items():
        if feature["kind"] == "last_n":
            steps = Table(title=f"{name}: {len(feature['value'])}, newest first", title_justify="left", box=None, pad_edge=False)
            for column in ("", "item", "event", "when"):
                steps.add_column(column, no_wrap=True)
            for at, step in enumerate(feature["value"], 1):
                steps.add_row(str(at), step["item"], step["event"], step["when"])
            console.print(steps)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(of)}" for name, of in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "unknown" if value is None else str(value)

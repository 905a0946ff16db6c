"""`liveshelf features`: one shopper's or item's rows, as they stand in the online store."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from liveshelf.errors import NotFoundError, SettingsError

if TYPE_CHECKING:
    from rich.table import Table

STORE_TIMEOUT_S = 5.0


def command(
    ctx: typer.Context,
    shopper: Annotated[str, typer.Argument(help="The shopper's user, client or session id; `--by` says which.")] = "",
    by: Annotated[str, typer.Option(help="Which id it is: user, client or session.")] = "client",
    item: Annotated[str, typer.Option(help="Show this item instead of a shopper.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show the features of one shopper, or of one item.

    Ids are given as the shop knows them; what is stored, and shown, is their pseudonym. Examples:

        liveshelf features 1234.5678            (a browser's GA4 client_id)
        liveshelf features 11 --by session
        liveshelf features --item sku-42
    """
    import msgspec

    from liveshelf.cli.console import table_console

    if bool(shopper) == bool(item):
        raise SettingsError("name either a SHOPPER or an --item. Try `liveshelf features --help`.")
    found = _item(ctx.obj, item) if item else _shopper(ctx.obj, shopper, by)
    if as_json:
        typer.echo(msgspec.json.encode(found).decode())
        return
    for name, value in found.items():
        table_console().print(_table(name, value))


def _shopper(settings: Any, shopper: str, by: str) -> dict[str, Any]:
    import msgspec

    from features.store import FeatureRows
    from streams.pseudonym import Pseudonyms

    if by not in ("user", "client", "session"):
        raise SettingsError(f"--by {by}: expected user, client or session")
    ids = {"user": "", "client": "", "session": ""} | {by: shopper}
    pseudonym = Pseudonyms.open(settings).shopper(ids["user"], ids["client"], ids["session"])
    rows = FeatureRows(settings, STORE_TIMEOUT_S).read_shoppers([pseudonym])
    if pseudonym not in rows:
        raise NotFoundError(
            f"no events of {by} {shopper!r} have been folded. Is it a {by} id (see --by)? Are the agents up (`liveshelf status`)?"
        )
    return {"shopper": msgspec.to_builtins(rows[pseudonym])}


def _item(settings: Any, item: str) -> dict[str, Any]:
    import msgspec

    from features.store import FeatureRows

    store = FeatureRows(settings, STORE_TIMEOUT_S)
    catalog = store.read_catalog([item])
    rows = store.read_items([(item, partition) for partition in range(settings.partitions)])
    if item not in catalog and not rows:
        raise NotFoundError(
            f"item {item!r} is neither in the catalog nor in any event so far. Check its spelling; ids are the shop's own."
        )
    found = {
        f"item, from clickstream partition {partition}": msgspec.to_builtins(row) for (_, partition), row in sorted(rows.items())
    }
    return {"catalog": msgspec.to_builtins(catalog[item]), **found} if item in catalog else found


def _table(title: str, row: dict[str, Any]) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("feature")
    table.add_column("value", overflow="fold")
    for name, value in row.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {weight:.3f}" for key, weight in sorted(value.items(), key=lambda pair: -pair[1]))
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        table.add_row(name, str(value))
    return table

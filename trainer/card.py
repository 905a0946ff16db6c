"""The model card that stands beside each version (Mitchell et al., 2019): what it is for, what it was made of, and how it was judged.

    models/<model>/<version>/assets.extra/model_card.md     for people
    models/<model>/<version>/assets.extra/release.json      the release as it stands in `model-releases`

`assets.extra` is where a SavedModel keeps what is not its own: model servers leave it alone.
"""

from datetime import UTC, datetime
from pathlib import Path

import msgspec

from liveshelf.errors import ConflictError
from streams.records import Release
from trainer.samples import TASKS

PARTS = {"recent": "the latest shelves", "earlier": "shelves of earlier steps", "replayed": "replayed shelves, sampled negatives"}
MEASURES = {"log_loss": "log loss (relative)", "order": "pairs in the wrong order (share)"}
FIGURES = ("samples", "log_loss", "auc", "mrr")


def write(version: Path, release: Release) -> None:
    """Put the card of `release` into the written model at `version`.

    Raises:
        ConflictError: the disk does not take it.
    """
    extra = version / "assets.extra"
    try:
        extra.mkdir(exist_ok=True)
        (extra / "model_card.md").write_text(card(release))
        (extra / "release.json").write_bytes(msgspec.json.format(msgspec.json.encode(release)))
    except OSError as error:
        raise ConflictError(f"cannot write the card of a model to {extra}: {error}. Free space or make it writable.") from error


def card(release: Release) -> str:
    """As Markdown."""
    made = datetime.fromtimestamp(release.time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return (
        "\n\n".join(
            [
                f"# Model {release.model}, version {release.version}",
                f"Made {made}. {release.outcome.capitalize()}: {release.reason}.",
                "## What it is for\n\nTo find items for a shopper of this shop, and to put them in order: `retrieve` gives the items nearest to what "
                "the shopper did last, `rank` the chances of a click, a cart and a purchase of items shown. It knows shoppers by their pseudonym's "
                "recent events and nothing else. It is not for other shops, for telling who somebody is, or for prices.",
                _made_of(release),
                _judged(release),
                _served(release),
                "## What to know\n\nChances are those of shelves like the ones it learnt from: shown by this shop, in the order that earlier versions "
                "chose. Items sighted seldom share a few vectors, or have that of their content. What shoppers do after the feedback window is not in "
                "it.",
            ]
        )
        + "\n"
    )


def _made_of(release: Release) -> str:
    lines = [f"- parent: version {release.parent}" if release.parent else "- parent: none, its weights began at random"]
    lines.append(f"- examples learnt from: {release.examples}, up to these offsets: {_inline(release.offsets)}")
    lines.append(f"- feature version: {release.feature_version}")
    if (made := release.lineage) is not None:
        lines.append(f"- of them examples of steps refused before: {made.retried}")
        lines.append(f"- items whose clicks were not believed: {', '.join(made.held_back) or 'none'}")
        lines.append(f"- settings: {_inline(made.settings)}")
        lines.append(f"- code: {_inline(made.code)}")
        lines.append(f"- items known: {made.items}; weights: {made.weights}")
    return "## What it was made of\n\n" + "\n".join(lines)


def _judged(release: Release) -> str:
    metrics = release.metrics
    rows = ["| shelves | number | log loss | AUC | MRR |", "|---|---|---|---|---|"]
    for part, words in (("served", "served, the latest"), ("earlier", PARTS["earlier"]), ("replayed", PARTS["replayed"])):
        if f"{part}_samples" in metrics:
            rows.append(f"| {words} | " + " | ".join(_figure(metrics.get(f"{part}_{name}")) for name in FIGURES) + " |")
    compared = ["| worse than its parent by | on | objective | point | low | high |", "|---|---|---|---|---|---|"]
    for part, words in PARTS.items():
        for task in ("all", *TASKS):
            for measure, name in MEASURES.items():
                prefix = f"worse_{part}_{task}_{measure}_"
                if f"{prefix}point" in metrics:
                    bounds = " | ".join(_figure(metrics.get(prefix + bound)) for bound in ("point", "low", "high"))
                    compared.append(f"| {name} | {words} | {task} | {bounds} |")
    head = "## How it was judged\n\nOn shelves that neither it nor the version before has learnt from; below 0 is better than the parent.\n\n"
    return head + "\n".join(rows) + ("\n\n" + "\n".join(compared) if len(compared) > 2 else "")


def _served(release: Release) -> str:
    names = ("rank_ms", "live_rank_ms", "memory_mb", "coverage", "shown_items", "live_shown_items")
    lines = [f"- {name}: {_figure(release.metrics[name])}" for name in names if name in release.metrics]
    return "## In a model server\n\n" + ("\n".join(lines) or "Not tried.")


def _inline(values: dict[str, int] | dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(values.items()))


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value == int(value) and abs(value) >= 1 else f"{value:.4g}"

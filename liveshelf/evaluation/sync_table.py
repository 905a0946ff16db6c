"""What each interval between an event and the weights that know it is worth on a log, and what it costs."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.declarations import milliseconds
from features.feature_set import FeatureSet
from liveshelf.errors import ConflictError, InvalidEventError, SettingsError
from liveshelf.evaluation.event_log import EventLog
from liveshelf.evaluation.neighbours import AT
from liveshelf.settings import Settings
from trainer.resample import Estimate, Ratio, difference, estimate
from trainer.vocabulary import Limits

if TYPE_CHECKING:  # TensorFlow: what is wrong with a log or an option is said before it is imported
    from liveshelf.evaluation.prequential import Costs, Outcomes, Replay

BEGINNING = 0.25  # of the log's time, where nothing else is said
BATCH, RETRAINED = "batch", "retrained"
MEASURES = {"auc": "AUC", f"hr{AT}": f"HR@{AT}", "log_loss": "log loss"}
DECIDING = "auc"
"""What says whether an interval pays: of one event it sees twenty pairs, where the others see one hit or one loss."""


def parse_intervals(text: str) -> dict[str, int]:
    """`1d,6h,1h` → name → ms, the longest first.

    Raises:
        SettingsError: one of them is no duration, or there is none.
    """
    intervals = {}
    for name in filter(None, (part.strip() for part in text.split(","))):
        intervals[name] = parse_duration(name, "--intervals")
    if not intervals:
        raise SettingsError(f"--intervals {text!r}: expected durations such as 1d,6h,15m")
    return dict(sorted(intervals.items(), key=lambda item: -item[1]))


def parse_duration(text: str, option: str) -> int:
    """ms.

    Raises:
        SettingsError: it is no duration, or shorter than a second.
    """
    try:
        ms = milliseconds(text)
    except (ValueError, KeyError, IndexError):
        ms = 0
    if ms < 1_000:
        raise SettingsError(f"{option} {text}: expected a whole number of seconds, minutes, hours or days: 30s, 15m, 6h, 1d")
    return ms


def sync_table(
    log: EventLog,
    intervals: dict[str, int],
    beginning_ms: int | None,
    settings: Settings,
    features: FeatureSet,
    evaluated_max: int,
    on_event: Callable[[int], None] = lambda n: None,
) -> dict[str, Any]:
    """The table as it is printed and as it is told in JSON. Each figure is [figure, low, high], 95% by a bootstrap over shoppers.

    Raises:
        InvalidEventError: the log is too short for it.
    """
    first, last = log.events[0].time_ms, log.events[-1].time_ms
    from_ms = first + (int((last - first) * BEGINNING) if beginning_ms is None else beginning_ms)
    if from_ms >= last:
        raise InvalidEventError(
            "--beginning", f"{(from_ms - first) / 1000:.0f} s", f"less than the log's {(last - first) / 1000:.0f} s"
        )
    from liveshelf.evaluation.prequential import prequential

    limits = Limits(settings.train_items_max, settings.train_item_sightings_min, settings.train_item_unused_days_max)
    replay = prequential(
        log.events,
        intervals,
        from_ms,
        features,
        limits,
        seed=settings.seed,
        evaluated_max=evaluated_max,
        retrain=True,
        on_event=on_event,
    )
    return _summary(log, intervals, replay)


def _summary(log: EventLog, intervals: dict[str, int], replay: "Replay") -> dict[str, Any]:
    outcomes = replay.outcomes
    names = [BATCH, *intervals, "neighbours", "popular"]
    ratios = {name: _ratios(outcomes, name) for name in names}
    rows = [
        {"name": name, "interval_s": intervals[name] // 1000 if name in intervals else None}
        | {measure: _listed(estimate(ratio)) for measure, ratio in ratios[name].items()}
        | _cost(replay.costs.get(name))
        for name in names
    ]
    ladder = [BATCH, *intervals]
    gains = [
        {"interval": name, "over": coarser}
        | {measure: _listed(_gain(measure, ratios[name], ratios[coarser])) for measure in MEASURES}
        for coarser, name in pairwise(ladder)
    ]
    return {
        "format": log.format,
        "events": len(log.events),
        "events_in_log": log.found,
        "unusable_lines": log.unusable,
        "from": _day(log.events[0].time_ms),
        "evaluated_from": _day(replay.from_ms),
        "to": _day(log.events[-1].time_ms),
        "evaluated": replay.evaluated,
        "eligible": replay.eligible,
        "shoppers": len(set(outcomes.shopper)),
        "rows": rows,
        "gains": gains,
        "retrain": _retrain(replay, *next(iter(intervals.items()))),
        "verdict": verdict(gains, replay.costs),
    }


def verdict(gains: Sequence[Mapping[str, Any]], costs: Mapping[str, "Costs"]) -> str:
    """One sentence: the shortest interval that is surely better than the next longer one, and surely worse in nothing; and what it costs."""
    worse = {gain["interval"]: found for gain in gains if (found := [m for m in MEASURES if gain[m][2] < 0])}
    paying = [gain for gain in gains if gain[DECIDING][1] > 0 and gain["interval"] not in worse]
    told = "; ".join(
        f"{name} is surely worse in {' and '.join(MEASURES[m] for m in found)} than the next longer one"
        for name, found in worse.items()
    )
    if not paying:
        none = f"No interval pays on this log: none has an {MEASURES[DECIDING]} that is surely above that of the next longer one"
        return f"{none}, and no figure that is surely below{f'; {told}' if told else ''}."
    best = paying[-1]
    name, over, (point, low, high) = best["interval"], best["over"], best[DECIDING]
    shorter = [gain["interval"] for gain in gains[gains.index(best) + 1 :] if gain["interval"] not in worse]
    rest = [f"{' and '.join(shorter)} gain{'s' if len(shorter) == 1 else ''} nothing beyond chance"] if shorter else []
    return (
        "; ".join(
            [
                f"{name} pays: its {MEASURES[DECIDING]} is {point:+.4f} [{low:+.4f}, {high:+.4f}] above that of {over}, for {costs[name].cpu_s:.0f} s of "
                f"processor time in place of {costs[over].cpu_s:.0f} s",
                *([told] if told else []),
                *rest,
            ]
        )
        + "."
    )


def _ratios(outcomes: "Outcomes", name: str, at: Sequence[int] | None = None) -> dict[str, Ratio]:
    """By measure, over all evaluated events or those numbered `at`."""
    told = outcomes.told[name]
    at = range(len(told)) if at is None else at
    found = [one for n in at if (one := told[n]) is not None]
    assert len(found) == len(at), (name, len(found), len(at))
    shopper = [outcomes.shopper[n] for n in at]
    pairs, places = [outcomes.pairs[n] for n in at], [outcomes.places[n] for n in at]
    return {
        "auc": Ratio.by(shopper, [one.right for one in found], pairs),
        f"hr{AT}": Ratio.by(shopper, [one.hit for one in found], [1] * len(at)),
        "log_loss": Ratio.by(shopper, [one.loss for one in found], places),
    }


def _gain(measure: str, ours: dict[str, Ratio], theirs: dict[str, Ratio]) -> Estimate:
    """Above 0 is better, of log loss too."""
    return difference(theirs[measure], ours[measure]) if measure == "log_loss" else difference(ours[measure], theirs[measure])


def _retrain(replay: "Replay", longest: str, interval_ms: int) -> dict[str, Any] | None:
    """What steps at the longest interval keep of what a model learnt anew gets, told of the interval before its next step."""
    since_ms = replay.retrained_ms
    at = [n for n, time_ms in enumerate(replay.outcomes.time_ms) if since_ms <= time_ms < since_ms + interval_ms]
    if not since_ms or not at:
        return None
    ours, anew = (_ratios(replay.outcomes, name, at) for name in (longest, RETRAINED))
    found: dict[str, Any] = {
        "interval": longest,
        "evaluated_from": _day(since_ms),
        "evaluated": len(at),
        "cpu_s": round(replay.costs[RETRAINED].cpu_s, 1),
    }
    for measure in MEASURES:
        found[measure] = {
            "incremental": _listed(estimate(ours[measure])),
            "retrained": _listed(estimate(anew[measure])),
            "difference": _listed(difference(ours[measure], anew[measure])),
            "relative": round(ours[measure].point / anew[measure].point - 1, 4) if anew[measure].point else None,
        }
    return found


def _cost(costs: "Costs | None") -> dict[str, Any]:
    return (
        {"steps": costs.steps, "learnt": costs.learnt, "cpu_s": round(costs.cpu_s, 1)}
        if costs
        else {"steps": 0, "learnt": 0, "cpu_s": 0.0}
    )


def _listed(found: Estimate) -> list[float]:
    return [round(value, 4) for value in found]


def _day(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_plot(path: Path) -> None:
    """Whether `plot` will be able to write `path`: asked before the work is done.

    Raises:
        SettingsError: matplotlib is not installed or does not write that format, or there is no such directory.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise SettingsError(f"--plot {path}: plots need matplotlib; pip install 'liveshelf[plots]'") from None
    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix[1:] not in formats:
        raise SettingsError(f"--plot {path}: expected a file name that ends in one of {', '.join(formats)}")
    if not path.absolute().parent.is_dir():
        raise SettingsError(f"--plot {path}: there is no directory {path.absolute().parent}")


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Each measure by interval with its bounds, simpler recommenders as lines, and the cost; in the format that `path`'s suffix names.

    Raises:
        ConflictError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    rows = {row["name"]: row for row in result["rows"]}
    names = [row["name"] for row in result["rows"] if row["interval_s"] is not None or row["name"] == BATCH]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, len(MEASURES) + 1)
    for axis, (measure, title) in zip(axes, MEASURES.items(), strict=False):
        point, low, high = zip(*(rows[name][measure] for name in names), strict=True)
        below, above = ([abs(p - b) for p, b in zip(point, bound, strict=True)] for bound in (low, high))
        axis.errorbar(range(len(names)), point, yerr=[below, above], fmt="o-", capsize=3, label="ours")
        for name, style in (("neighbours", "--"), ("popular", ":")):
            axis.axhline(rows[name][measure][0], linestyle=style, color="grey", label=name)
        axis.set_title(title + (" (less is better)" if measure == "log_loss" else ""))
        axis.set_xticks(range(len(names)), names)
    axes[0].legend(fontsize="small")
    axes[-1].bar(range(len(names)), [rows[name]["cpu_s"] for name in names])
    axes[-1].set_title("training, processor s")
    axes[-1].set_xticks(range(len(names)), names)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ConflictError(f"{path} cannot be written: {error}") from None

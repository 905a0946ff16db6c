"""What is said of intervals: which pays, and what is wrong with those that were asked for."""

import pytest

from liveshelf.errors import SettingsError
from liveshelf.evaluation.prequential import Costs
from liveshelf.evaluation.sync_table import parse_duration, parse_intervals, verdict

COSTS = {"batch": Costs(1, 10, 5.0), "1d": Costs(6, 100, 8.0), "1h": Costs(100, 100, 16.0), "5m": Costs(900, 100, 30.0)}


def gain(interval: str, over: str, low: float, hits_high: float = 0.01) -> dict[str, object]:
    flat = [0.0, -0.01, 0.01]
    return {
        "interval": interval,
        "over": over,
        "auc": [low + 0.01, low, low + 0.02],
        "hr20": [hits_high - 0.02, hits_high - 0.04, hits_high],
        "log_loss": flat,
    }


def test_intervals_are_durations_longest_first() -> None:
    assert list(parse_intervals("5m, 1d,6h").items()) == [("1d", 86_400_000), ("6h", 21_600_000), ("5m", 300_000)]
    assert parse_duration("30s", "--beginning") == 30_000
    for wrong in ("", "soon", "5", "m", "0m", "-1h", "1.5h"):
        with pytest.raises(SettingsError, match="--intervals"):
            parse_intervals(wrong)


def test_the_shortest_interval_that_surely_gains_pays() -> None:
    said = verdict([gain("1d", "batch", 0.01), gain("1h", "1d", 0.002), gain("5m", "1h", -0.01)], COSTS)
    assert said.startswith("1h pays: its AUC is +0.0120 [+0.0020, +0.0220] above that of 1d, for 16 s")
    assert said.endswith("5m gains nothing beyond chance.")


def test_an_interval_that_is_surely_worse_in_something_does_not_pay() -> None:
    said = verdict([gain("1d", "batch", 0.01), gain("1h", "1d", 0.002, hits_high=-0.005), gain("5m", "1h", -0.01)], COSTS)
    assert said.startswith("1d pays")
    assert said.endswith("1h is surely worse in HR@20 than the next longer one; 5m gains nothing beyond chance.")


def test_none_pays_where_none_surely_gains() -> None:
    assert verdict([gain("1d", "batch", -0.01), gain("1h", "1d", 0.0)], COSTS).startswith("No interval pays")

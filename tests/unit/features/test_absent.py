"""Feast without pandas and pyarrow, as in the images of agents and scoring; in a process of its own, where these cannot be found."""

import os
import subprocess
import sys
import textwrap

WITHOUT = """
from importlib.machinery import PathFinder
from features.absent import PACKAGES
found = PathFinder.find_spec
PathFinder.find_spec = staticmethod(lambda name, path=None, target=None: None if name.split(".")[0] in PACKAGES else found(name, path, target))
"""


def run(code: str) -> str:
    environment = {
        name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"
    }  # Feast, imported here, set it
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_agents_and_scoring_start_without_what_feast_needs_offline_and_rows_are_the_same_bytes() -> None:
    same = """
        import streams.agents, serving.service
        from features.declarations import read_declarations
        from features.feature_set import FeatureSet
        from features.packed import pack
        from tests.folding import stored_view
        features = FeatureSet(read_declarations(None))
        view = stored_view(features.shopper_view)
        values = [["item-%d" % (n % 3) for n in range(9)] if kind == "string_list" else [] if "list" in kind else "" if kind == "string"
                  else b"" if kind == "bytes" else 0 for _, kind, _ in features.shopper_view.fields]
        print(pack(view, 1, 2, 3, values).hex())
    """
    here, without = run(same), run(WITHOUT + textwrap.dedent(same))
    assert here == without
    assert len(here) > 100


def test_a_call_of_what_is_absent_says_what_to_install() -> None:
    said = run(
        WITHOUT
        + textwrap.dedent(
            """
            import features, pandas
            from pyarrow import parquet
            def later(call):
                try:
                    call()
                except ModuleNotFoundError as error:
                    print(error)
            later(lambda: pandas.DataFrame({}))
            later(lambda: parquet.ParquetWriter("x"))
            """
        )
    )
    assert said.splitlines() == [
        "pandas.DataFrame was called, but pandas is not installed here: pip install pandas",
        "pyarrow.parquet.ParquetWriter was called, but pyarrow is not installed here: pip install pyarrow",
    ]


def test_what_is_installed_is_used_and_what_is_not_named_stays_missing() -> None:
    said = run(
        """
        import features, pandas
        print(len(pandas.DataFrame({"a": [1, 2]})))
        for name in ("pandas.nothing", "tensorflow_nothing"):
            try:
                __import__(name)
            except ModuleNotFoundError as error:
                print(error)
        """
    )
    assert said.splitlines() == ["2", "No module named 'pandas.nothing'", "No module named 'tensorflow_nothing'"]

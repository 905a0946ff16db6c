"""The scorer under cProfile, for `python -m tests.bench.serving --profile FILE`: what a request's time is made of, by function."""

import cProfile
import os
import pstats
import sys

from serving.service import main

if __name__ == "__main__":
    profile = cProfile.Profile()
    profile.enable()
    try:
        code = main()
    finally:
        profile.disable()
        with open(os.environ["BENCH_PROFILE"], "w") as out:
            pstats.Stats(profile, stream=out).sort_stats("tottime").print_stats(60)
    sys.exit(code)

"""`make bench-serving`: the scorer, its overload, the model server and swaps, one after the other; last, one JSON object of them all."""

import json
import os
import subprocess
import sys

BENCHES = ("serving", "overload", "model_server", "swaps")
ARGUMENTS = {"model_server": ["--parts", "overhead"]}  # its swaps without a scorer are another question


def main() -> int:
    found: dict[str, float] = {}
    failed = []
    for name in BENCHES:
        print(f"\n=== {name}", flush=True)
        command = [sys.executable, "-m", f"tests.bench.{name}", *ARGUMENTS.get(name, [])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                print(line, end="", flush=True)
        if process.returncode or not lines:
            failed.append(name)
        else:
            found |= {key: value for key, value in json.loads(lines[-1]).items() if key != "load_average"}
    found["load_average_after"] = round(os.getloadavg()[0], 2)
    if failed:
        print(f"no figures of: {', '.join(failed)}", file=sys.stderr)
    print(json.dumps(found))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

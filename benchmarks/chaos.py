"""kill -9 of server, web process, worker and trainer at random moments of every phase of a round, many in a row.

    make chaos, or: PYTHONPATH=tests .venv/bin/python -m benchmarks.chaos [--kills 200] [--seed 0]

After each round: every annotation in the newest version, the queue ordered by it, one prediction per task with the
version's own score, store and image cache without a finding, no process and no temporary file too many. Ends with status
1 at the first that fails. Writes chaos.json beside itself.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
from chaos_kills import Kill, rounds
from chaos_stage import chaos_stage

PACE = 0.3  # seconds that Label Studio takes before and after each step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kills: list[Kill] = []
    seconds: list[tuple[int, float]] = []
    failure = ""
    try:
        with tempfile.TemporaryDirectory() as folder, chaos_stage(Path(folder), PACE) as stage:
            for one in rounds(stage, options.kills, options.seed, kills.append, calm=3):
                seconds.append((len(one.kills), one.seconds))
                print(f"{len(kills)} kills; settled {one.seconds:.1f} s after the last", flush=True)
    except AssertionError as error:
        failure = str(error)
    serving = [kill.serving for kill in kills if kill.serving is not None]
    results = {
        "kills": len(kills),
        "rounds": len(seconds),
        "failure": failure,
        "by_phase": Counter(kill.phase for kill in kills),
        "by_victim": Counter(kill.victim for kill in kills),
        "serving_again_seconds": {"median": np.median(serving).item(), "most": max(serving)} if serving else {},
        "calm_round_seconds": [round(took, 1) for count, took in seconds if count == 0],
        "recovery_seconds": [round(took, 1) for count, took in seconds if count],
        "load": os.getloadavg(),
        "each": [asdict(kill) for kill in kills],
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({key: value for key, value in results.items() if key != "each"}, indent=1))
    sys.exit(1 if failure else 0)


if __name__ == "__main__":
    main()

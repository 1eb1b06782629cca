"""Compare the hashes two dvc.lock files record: python .ci/same_outputs.py ONE OTHER.

Run records hold timings and the report shows them, so those two may differ; everything else must not.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ruamel.yaml import YAML

TIMED = ("data/runs/", "data/report/")


def outputs(lock: Path) -> dict[str, str]:
    """Path to hash of every output that has no timing in it."""
    stages = YAML(typ="safe").load(lock.read_text(encoding="utf-8"))["stages"]
    found = {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}
    return {path: md5 for path, md5 in found.items() if not path.startswith(TIMED)}


def main(one: Path, other: Path) -> int:
    """Print what differs; 1 if anything does."""
    first, second = outputs(one), outputs(other)
    different = sorted(path for path in first.keys() | second.keys() if first.get(path) != second.get(path))
    for path in different:
        print(f"{path}: {first.get(path)} in {one}, {second.get(path)} in {other}")
    print(f"{len(first)} outputs compared, {len(different)} differ")
    return 1 if different or not first else 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2])))

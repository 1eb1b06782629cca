"""Compare the hashes that two dvc.lock files record: python .ci/same_outputs.py FIRST SECOND.

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
    hashes = {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}
    return {path: md5 for path, md5 in hashes.items() if not path.startswith(TIMED)}


def main(first: Path, second: Path) -> int:
    """Print what differs; 1 if anything does."""
    a, b = outputs(first), outputs(second)
    different = sorted(path for path in a.keys() | b.keys() if a.get(path) != b.get(path))
    for path in different:
        print(f"{path}: {a.get(path)} in {first}, {b.get(path)} in {second}")
    print(f"{len(a)} outputs compared, {len(different)} differ")
    return 1 if different or not a else 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2])))

"""Pictures drawn by several processes."""

import os
import subprocess
import sys
import time

DRAWS = """
import multiprocessing, time
import numpy as np
from efface.data.benchmarks.avatars.appearance import stranger_look
from efface.data.benchmarks.avatars.portraits import draw_shot
from efface.data.benchmarks.avatars.renderer import Renderer

rng = np.random.default_rng(0)
faces = [(stranger_look(rng, set()), draw_shot(rng)) for _ in range(64)]
with Renderer(16, total=64, workers=2) as studio:
    studio.pictures(faces)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"


def test_what_draws_ends_with_the_process_it_draws_for():
    with subprocess.Popen([sys.executable, "-c", DRAWS], stdout=subprocess.PIPE, text=True) as process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) >= 1
        assert all(alive(pid) for pid in workers)
        process.kill()
    until = time.monotonic() + 60
    while any(alive(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in workers)

"""Files are complete or absent, digests detect every change, and records hold what a stage did."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from efface.errors import ArtifactError
from tasks.runtime.artifacts import digest, disk_is_full, read_json, recording, write_json, writing

PROJECT = Path(__file__).resolve().parents[3]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "a.txt"
    with writing(target) as partial:
        partial.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(target.parent) == ["a.txt"]


def test_a_folder_replaces_the_old_one_whole(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old.bin").write_text("old")
    with writing(target) as partial:
        partial.mkdir()
        (partial / "new.bin").write_text("new")
        assert names(target) == ["old.bin"]
    assert names(target) == ["new.bin"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("folder", [True, False])
def test_a_failure_leaves_the_old_content_and_no_partial(tmp_path, folder):
    target = tmp_path / "thing"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="disk full"), writing(target) as partial:
        if folder:
            partial.mkdir()
            (partial / "half").write_text("x")
        else:
            partial.write_text("half")
        raise RuntimeError("disk full")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["thing"]


def test_writing_nothing_is_an_error(tmp_path):
    with pytest.raises(ArtifactError) as error, writing(tmp_path / "x"):
        pass
    assert str(tmp_path / "x") in str(error.value)


CHILD = """
import sys, time
from pathlib import Path
from tasks.runtime.artifacts import writing
with writing(Path(sys.argv[1])) as partial:
    partial.mkdir()
    (partial / "half.bin").write_text("half")
    print("half-way", flush=True)
    time.sleep(60)
"""


def test_a_process_killed_half_way_changes_nothing_and_the_next_one_cleans_up(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("whole")
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(target)], cwd=PROJECT, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"half-way\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    remaining = names(tmp_path)
    assert f".model.partial-{child.pid}" in remaining
    assert (target / "weights").read_text() == "whole"
    with writing(target) as partial:
        assert f".model.partial-{child.pid}" not in names(tmp_path)
        partial.mkdir()
        (partial / "weights").write_text("new")
    assert names(tmp_path) == ["model"]
    assert (target / "weights").read_text() == "new"


def test_the_partial_of_a_living_process_is_left_alone(tmp_path):
    partial_file = tmp_path / f".a.partial-{os.getppid()}"
    partial_file.write_text("in use")
    with writing(tmp_path / "a") as partial:
        partial.write_text("mine")
    assert partial_file.read_text() == "in use"


def test_the_partial_of_a_zombie_process_is_removed(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and its number still taken
    (tmp_path / f".a.partial-{child.pid}").write_text("half")
    with writing(tmp_path / "a") as partial:
        partial.write_text("whole")
    assert names(tmp_path) == ["a"]
    child.wait()


FULL = """
import resource, signal, sys
from pathlib import Path

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing past the limit is then an error, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
import tasks.__main__ as program
from tasks.runtime.artifacts import writing

def with_torch(path):
    import torch
    from safetensors.torch import save_file
    save_file({"x": torch.zeros(10000)}, path)

def plain(path):
    path.write_bytes(bytes(100000))

with program._short_errors():
    with writing(Path(sys.argv[1])) as partial:
        {"safetensors": with_torch, "plain": plain}[sys.argv[2]](partial)
"""


@pytest.mark.parametrize("kind", ["plain", "safetensors"])
def test_a_full_disk_is_one_line_and_keeps_the_old_content(tmp_path, kind):
    target = tmp_path / "model.safetensors"
    target.write_text("old")
    completed = subprocess.run(
        [sys.executable, "-c", FULL, str(target), kind],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 1
    assert completed.stderr.startswith("error: ") and len(completed.stderr.splitlines()) == 1
    assert "File too large" in completed.stderr and "make room" in completed.stderr
    assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == [target.name]


def test_a_digest_sees_names_contents_and_nothing_else(tmp_path):
    folder = tmp_path / "f"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_text("1")
    (folder / "sub" / "b").write_text("2")
    first = digest(folder)
    os.utime(folder / "a", (0, 0))
    assert digest(folder) == first
    (folder / "a").write_text("2")
    assert digest(folder) != first
    (folder / "a").write_text("1")
    assert digest(folder) == first
    (folder / "sub" / "b").rename(folder / "sub" / "c")
    assert digest(folder) != first


def test_the_digest_of_a_file_is_plain_sha256(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_digest_of_nothing_says_how_to_get_it(tmp_path):
    with pytest.raises(ArtifactError) as error:
        digest(tmp_path / "missing")
    assert str(tmp_path / "missing") in str(error.value) and "dvc repro" in str(error.value)


def test_json_round_trips_and_refuses_what_it_cannot_say(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": [None, 0.5, "é"]})
    assert read_json(path) == {"a": [None, 0.5, "é"], "b": 1}
    assert path.read_text().index('"a"') < path.read_text().index('"b"')
    with pytest.raises(ArtifactError) as error:
        write_json(path, {"loss": float("nan")})
    assert str(path) in str(error.value) and "nan" in str(error.value)
    assert read_json(path)["b"] == 1


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00"])
def test_damaged_json_names_the_file_and_the_way_back(tmp_path, content):
    path = tmp_path / "scores.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as error:
        read_json(path)
    assert str(path) in str(error.value) and "dvc repro" in str(error.value)


def test_missing_json_says_how_to_make_it(tmp_path):
    with pytest.raises(ArtifactError) as error:
        read_json(tmp_path / "no.json")
    assert str(tmp_path / "no.json") in str(error.value) and "dvc repro" in str(error.value)


def test_a_record_holds_what_went_in_and_came_out(tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    source.write_text("in")
    with recording(
        "unlearn",
        {"epochs": 2},
        name="npo",
        root=tmp_path,
        seed=3,
        inputs={"source": source},
        outputs={"made": output},
    ) as record:
        record.history = [{"step": 1, "forget_loss": 0.5}]
        record.summary.update(steps=1)
        time.sleep(0.01)
        output.write_text("out")
    written = json.loads((tmp_path / "runs" / "unlearn@npo.json").read_text())
    assert written["inputs"] == {"source": digest(source)}
    assert written["outputs"] == {"made": digest(output)}
    assert written["params"] == {"epochs": 2}
    assert written["history"] == [{"step": 1, "forget_loss": 0.5}]
    assert written["summary"] == {"steps": 1}
    assert written["seconds"] >= 0.01
    assert written["seed"] == 3
    assert written["peak_memory_mib"] > 1


def test_a_failed_stage_leaves_no_record(tmp_path):
    with pytest.raises(RuntimeError), recording("vanilla", {}, root=tmp_path):
        raise RuntimeError("died")
    assert not (tmp_path / "runs").exists()


def test_an_input_that_is_not_what_its_stage_recorded_is_refused(tmp_path):
    model = tmp_path / "models" / "vanilla"
    with recording("vanilla", {}, root=tmp_path, outputs={"vanilla": model}):
        model.mkdir(parents=True)
        (model / "weights").write_bytes(b"abc")
    with recording("importance", {}, root=tmp_path, inputs={"vanilla": model}):
        pass
    (model / "weights").write_bytes(b"abd")  # a flipped bit
    with pytest.raises(ArtifactError) as error, recording("saliency", {}, root=tmp_path, inputs={"m": model}):
        pass
    assert str(model) in str(error.value) and "runs/vanilla.json" in str(error.value)
    assert "dvc checkout --force" in str(error.value)
    assert not (tmp_path / "runs" / "saliency.json").exists()


def test_a_record_of_another_run_is_not_called_damage(tmp_path):
    """After `dvc pull data/models/vanilla` beside the record of an earlier run."""
    root, model = tmp_path / "data", tmp_path / "data" / "models" / "vanilla"
    with recording("vanilla", {}, root=root, outputs={"vanilla": model}):
        model.mkdir(parents=True)
        (model / "weights").write_bytes(b"earlier")
    record = root / "runs" / "vanilla.json"
    (model / "weights").write_bytes(b"pulled")
    for md5, said in (
        ("0" * 32, "not the one in dvc.lock"),
        (hashlib.md5(record.read_bytes()).hexdigest(), "damaged"),
    ):
        (tmp_path / "dvc.lock").write_text(f"md5: {md5}\n")
        with (
            pytest.raises(ArtifactError, match=said),
            recording("saliency", {}, root=root, inputs={"m": model}),
        ):
            pass


def test_a_full_disk_is_recognised_in_every_kind_of_error(tmp_path):
    (tmp_path / "from").mkdir()
    for name in ("a", "b"):
        (tmp_path / "from" / name).write_text("text")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(shutil.Error) as copying:
        shutil.copytree(tmp_path / "from", tmp_path / "to", copy_function=full)
    assert disk_is_full(copying.value)
    assert disk_is_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert disk_is_full(RuntimeError("Error while serializing: I/O error: File too large (os error 27)"))
    denied = shutil.Error([("a", "b", "[Errno 13] Permission denied")])
    for error in (OSError(errno.EACCES, "of disk (os error 28)"), denied, ValueError("28")):
        assert not disk_is_full(error)

"""Checkpoint folders: the same run reuses its own; another run's is deleted with a message."""

from __future__ import annotations

import pytest

from tasks.runtime.checkpoints import checkpoints_for, mark_finished


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "samples.parquet"
    path.write_bytes(b"people")
    return path


def call(tmp_path, table, **changes):
    arguments = {"settings": {"steps": 3}, "seed": 0, "inputs": {"prepared": table}, "name": "npo"} | changes
    return checkpoints_for("unlearn", root=tmp_path, **arguments)


def test_the_same_run_finds_its_checkpoint_again(tmp_path, table, capsys):
    first = call(tmp_path, table)
    first.folder.mkdir(parents=True)
    (first.folder / "state.json").write_text("{}")
    again = call(tmp_path, table)
    assert (again.folder, again.key) == (first.folder, first.key)
    assert (first.folder / "state.json").is_file()
    assert "resuming from" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"settings": {"steps": 4}}, {"seed": 1}])
def test_a_checkpoint_of_other_settings_is_deleted_and_named(tmp_path, table, capsys, change):
    old = call(tmp_path, table).folder
    old.mkdir(parents=True)
    new = call(tmp_path, table, **change).folder
    assert new != old and not old.exists()
    assert f"deleting {old}" in capsys.readouterr().err


def test_other_inputs_make_another_run(tmp_path, table):
    before = call(tmp_path, table).key
    table.write_bytes(b"other people")
    assert call(tmp_path, table).key != before


def test_methods_keep_their_checkpoints_apart(tmp_path, table):
    old = call(tmp_path, table).folder
    old.mkdir(parents=True)
    call(tmp_path, table, name="grad_diff")
    assert old.exists()


def test_the_parts_of_a_replacement_stay_with_their_checkpoint(tmp_path, table):
    folder = call(tmp_path, table).folder
    previous = folder.with_name(f"{folder.name}.previous")
    previous.mkdir(parents=True)  # killed between the two renames of a replacement
    call(tmp_path, table)
    assert previous.is_dir()


def test_a_finished_run_keeps_its_checkpoint_until_another_stage_starts(tmp_path, table):
    checkpoints = call(tmp_path, table)
    mark_finished(checkpoints)  # without a checkpoint there is nothing to keep
    checkpoints.folder.mkdir(parents=True)
    unfinished = call(tmp_path, table, name="grad_diff").folder
    unfinished.mkdir(parents=True)
    mark_finished(checkpoints)
    assert call(tmp_path, table).folder.is_dir()  # DVC was killed before it stored the output
    call(tmp_path, table, name="kl_min")
    assert not checkpoints.folder.exists() and unfinished.is_dir()

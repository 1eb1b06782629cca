"""On a disk that is really full, certifying and purging say so, and go on once there is room."""

import pytest

from tasks.requests import purge
from tasks.requests.certificates import read_certificates, verify
from tasks.requests.promotion import promote
from tasks.requests.state import CANDIDATE, PRODUCTION, read_states
from tests.requests_project import PEOPLE
from tests.small_disk import repeated, small_disk
from tests.tasks.requests.purged_project import PERSON, all_traces, run_purge

pytestmark = pytest.mark.slow


@pytest.fixture
def tmp_path(tmp_path_factory):
    """A folder on a disk of its own, for the project and its remote."""
    with small_disk(disk := tmp_path_factory.mktemp("disk"), 64) as mounted:
        if not mounted:
            pytest.skip("mounting a small disk is not allowed here")
        (disk / "project").mkdir()
        yield disk / "project"


def test_a_certificate_on_a_full_disk(project, tmp_path):
    project.add("A", PEOPLE[1])
    run = project.plan()
    verdict = project.judge(run)

    def check():
        assert project.registry.aliases()[PRODUCTION] == 1
        assert project.plan() == run, "the next run resumes this one"
        if "A" in read_states(project.root):
            assert verify(project.root, project.registry).faults == []

    assert repeated(tmp_path.parent, lambda: project.accept(run, verdict), check) >= 3
    assert project.registry.aliases() == {PRODUCTION: 1, CANDIDATE: 2}
    assert len(project.registry.versions()) == 2 and len(read_certificates(project.root)) == 1
    promoted = repeated(tmp_path.parent, lambda: promote(project.root, project.registry), lambda: None)
    assert promoted >= 1 and read_states(project.root)["A"].status == "done"
    assert verify(project.root, project.registry).faults == []


def test_a_purge_on_a_full_disk_deletes_only_what_its_record_names(done, tmp_path):
    folder, before = done.root.parent, all_traces(done)
    files = {path for path in folder.rglob("*") if path.is_file()}

    def check():
        if purge.unfinished(done.root) is None:
            assert all_traces(done) == before, "nothing is deleted that no plan names"
        assert read_states(done.root)["A"].status in ("done", "purged")

    assert repeated(tmp_path.parent, lambda: run_purge(done), check) >= 2
    assert all_traces(done) == set()
    assert verify(done.root, done.registry).faults == []
    (record,) = [item for item in read_certificates(done.root) if "purge" in item]
    recorded = [folder / name for name in record["purge"]["deleted"]["project"]]
    recorded += [folder / name for name in ("mlartifacts", ".dvc/cache", ".dvc/tmp", ".efface")]
    deleted = {path for path in files if not path.exists()}
    assert deleted and [p for p in deleted if not any(p.is_relative_to(place) for place in recorded)] == []
    assert PERSON not in str(record)

import pytest
from hypothesis import settings

from splitpoint.files import project_root

# tests time nothing: an example that is slow on a busy machine is no failure
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def scratch_project(tmp_path, monkeypatch):
    """A project folder of its own with the real data linked in, so that nothing is written into this one."""
    tmp_path.joinpath("data").symlink_to(project_root() / "data")
    monkeypatch.setenv("SPLITPOINT_ROOT", str(tmp_path))
    return tmp_path

from scripts.mutations import MUTATIONS
from splitpoint.files import project_root


def test_every_mutation_still_has_its_line():
    """A fragment that code has outgrown would test nothing; the mutants themselves take minutes and run apart."""
    source = project_root() / "src" / "splitpoint"
    for file, fragment, changed, tests in MUTATIONS:
        assert (source / file).resolve().read_text().count(fragment) == 1, f"{file}: {fragment!r}"
        assert changed != fragment and (project_root() / tests.split()[0]).exists(), tests

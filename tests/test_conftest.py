"""What `make test-fast` leaves out."""

from pathlib import Path

from conftest import SLOW_FILES


def test_the_slow_files_are_there():
    assert {path.name for path in Path(__file__).parent.glob("test_*.py")} >= SLOW_FILES

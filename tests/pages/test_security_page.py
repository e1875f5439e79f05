"""The table of known attacks names tests that there are."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "serving" / "security.md"
TESTS = ROOT / "tests" / "serve"


def test_every_attack_names_its_test() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## Known attacks on HTTP/2")[2]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    code = "".join(file.read_text(encoding="utf-8") for file in TESTS.rglob("test_*.py"))
    for row in rows:
        named = re.findall(r"`(test_\w+)(?:\[(\w+)\])?`", row.split("|")[3])
        files = re.findall(r"`([\w/]*test_\w+\.py)`", row.split("|")[3])
        assert named or files, row
        for name, parameter in named:
            assert f"def {name}(" in code, name
            assert parameter in code
        for file in files:
            assert list(TESTS.rglob(Path(file).name)), file

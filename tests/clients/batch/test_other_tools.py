"""What FiftyOne and Cleanlab read, read by these tools in an environment of their own."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from ...environment import make_environment

pytestmark = pytest.mark.network

FIFTYONE = """
import json, sys
from fiftyone.utils.data.importers import FiftyOneImageClassificationDatasetImporter as Importer
found = {}
for name in ("predictions", "ground_truth"):
    with Importer(labels_path=f"{sys.argv[1]}/{name}.json") as importer:
        found[name] = {path: [label.label, label.confidence] for path, _, label in importer}
print("found", json.dumps(found))
"""

CLEANLAB = """
import json, sys
import numpy as np, pyarrow.parquet as pq
from cleanlab.filter import find_label_issues
table = pq.read_table(sys.argv[1])
def column(name):
    return np.stack(table[name].to_numpy()).astype(np.float64)
probabilities = column("probabilities")
issues = find_label_issues(
    table["target"].to_numpy(),
    probabilities / probabilities.sum(axis=1, keepdims=True),
    return_indices_ranked_by="self_confidence",
    n_jobs=1,
)
images = table["image"].to_pylist()
print("found", json.dumps([[images[i] for i in issues], list(column("embedding.planes").shape)]))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with both tools."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    return make_environment(folder, "cleanlab", "fiftyone", "pyarrow")


def answer(python: Path, script: str, argument: Path, home: Path):
    # FiftyOne keeps its data sets in a database, which an importer by itself does without.
    settings = {
        "HOME": str(home),
        "FIFTYONE_DATABASE_URI": "mongodb://127.0.0.1:9",
        "FIFTYONE_DO_NOT_TRACK": "true",
    }
    run = subprocess.run(
        [python, "-c", script, argument],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    (line,) = (x for x in run.stdout.splitlines() if x.startswith("found "))
    return json.loads(line.removeprefix("found "))


def test_fiftyone_imports_the_predictions_and_the_truth(python, run, folder, red, tmp_path):
    place = tmp_path / "fiftyone"
    assert run(folder, red, "--out", tmp_path / "t.jsonl", "--fiftyone", place)[0] == 0
    found = answer(python, FIFTYONE, place, tmp_path)
    assert len(found["predictions"]) == len(found["ground_truth"]) == 61
    label, confidence = found["predictions"][str(red)]
    assert label == "red"
    assert 0.9 < confidence <= 1
    assert found["ground_truth"][str(red)] == ["blue, azure", None]


def test_cleanlab_finds_the_picture_under_a_wrong_name(python, run, folder, red, tmp_path):
    out = tmp_path / "t.parquet"
    arguments = (folder, red, "--out", out, "--probabilities", "--embeddings", "last")
    assert run(*arguments)[0] == 0
    issues, shape = answer(python, CLEANLAB, out, tmp_path)
    assert issues[0] == str(red)
    assert shape == [61, 3]

"""How long a browser takes to open a report of ten thousand pictures.

python -m benchmarks.report [--images DIR] [--pictures N] [--rounds N]

The report is written by the same writer as that of `foveate batch --report`, of the
photographs of --images in turn, each under a name of its own, with a map of the class found
and, of every tenth picture, of another right one. A headless Chromium opens the file anew in
each round. `opened` is the time from the navigation until the script has shown the first
rows and the page is loaded; `drawn` until their tiles are decoded and painted, too;
`filtered` what a click on a cell of the confusion matrix takes. All are by the browser's own
clock, in seconds.
"""

import argparse
import os
import shutil
import tempfile
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from benchmarks import machine
from benchmarks.request_cost import summary
from foveate_client.batch.evaluation import Evaluator
from foveate_client.batch.journal import Row, RowTrust
from foveate_client.report.entries import Entry
from foveate_client.report.page import Heading
from foveate_client.report.tiles import Map, draw
from foveate_client.report.writer import ReportWriter

RESULTS = Path(__file__).parent / "results" / "report.json"
TARGET_SECONDS = 3.0
CLASSES = 1000

OPENED = "return performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"
PAINTED = """
const done = arguments[0];
const addresses = [...document.querySelectorAll(".tile div")].map(
  (each) => each.style.backgroundImage.slice(5, -2));
Promise.all([...new Set(addresses)].map((address) => {
  const image = new Image();
  image.src = address;
  return image.decode();
})).then(() => requestAnimationFrame(() => setTimeout(() => done(performance.now() / 1000))));
"""
CLICK = """
const done = arguments[0];
const cell = document.querySelector("button[data-found]:not(.right)");
const began = performance.now();
cell.click();
requestAnimationFrame(() => setTimeout(() => done((performance.now() - began) / 1000)));
"""


def write(path: Path, images: Path, pictures: int) -> None:
    """Write a report of `pictures` pictures."""
    labels = [f"class {number}" for number in range(CLASSES)]
    heading = Heading(model="benchmark", version="1", labels=labels, scores="softmax")
    chance = np.random.default_rng(0)
    files = sorted(file for file in images.rglob("*") if file.is_file())
    maps = [Map(number, chance.random((7, 7), dtype=np.float32)) for number in range(2)]
    evaluator = Evaluator()
    with ReportWriter(path, heading) as report:
        turns = track(islice(cycle(files), pictures), "pictures", pictures, console=_console())
        for number, file in enumerate(turns):
            found, wrong = int(chance.integers(CLASSES)), number % 10 == 0
            target = (found + int(chance.integers(1, 4))) % CLASSES if wrong else found
            scores = np.sort(chance.dirichlet(np.full(5, 0.3)))[::-1].astype(np.float32)
            trust = RowTrust(
                confidence=float(scores[0]),
                coverage=0.9,
                prediction_set=[found, target],
                ood_percentile=float(chance.uniform(0, 100)),
                abstained=False,
            )
            class_ids = (found + np.arange(5)) % CLASSES
            entry = Entry(
                name=f"{file.parent.name}/{number:05}-{file.name}",
                class_ids=class_ids.tolist(),
                scores=scores.tolist(),
                found=[found],
                targets=[target],
                surprise=float(scores[0]),
                trust=trust,
            )
            row = Row(
                name=entry.name,
                position=number,
                label=None,
                class_ids=class_ids.astype(np.int32),
                scores=scores,
                vectors=np.empty(0, dtype=np.float32),
                cam=None,
                trust=trust,
            )
            evaluator.add(row, target)
            report.add(entry, draw(file, maps[: 1 + wrong]))
        report.write(evaluator.result())


def measure(images: Path, pictures: int, rounds: int) -> dict[str, object]:
    """Write a report and open it `rounds` times, the first of which is not counted."""
    seconds: dict[str, list[float]] = {"opened": [], "drawn": [], "filtered": []}
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        write(page, images, pictures)
        beside = sum(file.stat().st_size for file in page.with_name("report_files").glob("*"))
        for number in track(range(rounds + 1), "rounds", console=_console()):
            browser = _browser()
            try:
                browser.get(page.as_uri())
                found = {
                    "opened": browser.execute_script(OPENED),
                    "drawn": browser.execute_async_script(PAINTED),
                    "filtered": browser.execute_async_script(CLICK),
                }
                assert browser.find_elements("class name", "row"), "no row is shown"
                version = browser.capabilities["browserVersion"]
            finally:
                browser.quit()
            if number > 0:
                for name, value in found.items():
                    seconds[name].append(value)
        size = page.stat().st_size
    return {
        "benchmark": "report",
        "pictures": pictures,
        "rounds": rounds,
        "page_bytes": size,
        "sheets_bytes": beside,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "target_seconds": {"opened": TARGET_SECONDS},
        "chromium": version,
        "load_average": round(os.getloadavg()[0], 2),
        "machine": machine.describe(),
    }


def _browser() -> webdriver.Chrome:
    options = Options()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def _console() -> Console:
    return Console(stderr=True)


def main() -> None:
    """Parse the command line, measure, write the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, default=os.environ.get("FOVEATE_IMAGENET_DIR"))
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.images is None:
        parser.error("--images DIR is needed where FOVEATE_IMAGENET_DIR is not set")
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        parser.error("needs Chromium and its driver: apt-get install chromium chromium-driver")
    result = measure(Path(options.images), options.pictures, options.rounds)
    machine.save(result, options.out)
    table = Table("seconds", "min", "median", "max")
    seconds = result["seconds"]
    assert isinstance(seconds, dict)
    for name, row in seconds.items():
        table.add_row(name, *(str(row[key]) for key in ("min", "median", "max")))
    Console().print(table)
    _console().print(f"written to {options.out}")


if __name__ == "__main__":
    main()

"""The page of a report in a browser: what it shows, and what filters and clicks change."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select

from foveate_client.batch.evaluation import Evaluator
from foveate_client.batch.journal import Row, RowTrust
from foveate_client.report.entries import Entry
from foveate_client.report.page import Heading
from foveate_client.report.tiles import PICTURE, SIDE, Map, draw, pack, sheets, size_of, unpack
from foveate_client.report.writer import ReportWriter

from ...browser import chromium, complaints
from ...waiting import wait_until

HOSTILE = ("</script><script>document.title='taken'</script>", "<img src=x onerror=alert(1)>", "c")
PICTURES = 10_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as started:
        yield started


def photograph(side: int = 40) -> Image.Image:
    with Image.open(Path(skimage.__file__).parent / "data/chelsea.png") as image:
        return image.convert("RGB").resize((side, side * 2 // 3))


def write(path: Path, count: int) -> list[Entry]:
    """Write a report of `count` pictures of three hostile labels, every tenth of them wrong."""
    heading = Heading(model="m & m", version="<1>", labels=HOSTILE, scores="softmax")
    evaluator = Evaluator()
    image = photograph()
    drawn = draw(image, [Map(0, np.eye(3, dtype=np.float32))])
    entries = []
    with ReportWriter(path, heading) as report:
        for number in range(count):
            found, wrong = number % 3, number % 10 == 0
            target = (found + 1) % 3 if wrong else found
            score = 0.4 + 0.5 * number / count
            trust = RowTrust(
                confidence=score,
                coverage=0.9,
                prediction_set=list(range(number % 3)),
                ood_percentile=100 * number / count,
                abstained=False,
            )
            entry = Entry(
                name=f"{HOSTILE[0]}/{number:05}.jpg",
                class_ids=[found, (found + 1) % 3],
                scores=[score, 1 - score],
                found=[found],
                targets=[target],
                surprise=score,
                trust=trust,
            )
            row = Row(
                name=entry.name,
                position=number,
                label=None,
                class_ids=np.array(entry.class_ids, dtype=np.int32),
                scores=np.array(entry.scores, dtype=np.float32),
                vectors=np.empty(0, dtype=np.float32),
                cam=None,
                trust=trust,
            )
            evaluator.add(row, target)
            report.add(entry, drawn)
            entries.append(entry)
        report.fail(HOSTILE[1], HOSTILE[0])
        report.write(evaluator.result())
    return entries


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Entry]]:
    path = tmp_path_factory.mktemp("large") / "a report #1.html"
    return path, write(path, PICTURES)


def count(browser: Chrome) -> str:
    return browser.find_element(By.ID, "count").text


def names(browser: Chrome) -> list[str]:
    return [each.get_attribute("title") for each in browser.find_elements(By.CLASS_NAME, "name")]


def test_ten_thousand_pictures_open_with_the_worst_mistakes_first(
    browser: Chrome, large: tuple[Path, list[Entry]]
) -> None:
    path, entries = large
    browser.get(path.as_uri())
    assert count(browser) == "10,000 pictures"
    worst = sorted((x for x in entries if x.wrong), key=lambda x: -x.surprise)
    shown = names(browser)
    assert 0 < len(shown) < 50
    assert shown == [x.name for x in worst[: len(shown)]]
    # Text, and no elements: neither a label nor a name is a piece of the page.
    assert browser.title == "m & m, version <1>"
    assert HOSTILE[1] in browser.find_element(By.TAG_NAME, "body").text
    assert not browser.find_elements(By.TAG_NAME, "img")
    browser.execute_script("scrollTo(0, document.body.scrollHeight)")
    right = sorted((x for x in entries if not x.wrong), key=lambda x: x.scores[0])
    wait_until(lambda: right[-1].name in names(browser))
    assert not complaints(browser)


def test_the_tiles_lie_beside_a_large_report_and_are_found(
    browser: Chrome, large: tuple[Path, list[Entry]]
) -> None:
    path, _ = large
    folder = path.with_name("a report #1_files")
    assert len(list(folder.iterdir())) > 1
    browser.get(path.as_uri())
    (address,) = {
        re.fullmatch(r'url\("(.*)"\)', each.value_of_css_property("background-image"))[1]
        for each in browser.find_elements(By.CSS_SELECTOR, ".row:first-child .tile div")
    }
    loaded = browser.execute_async_script(
        "const [address, done] = arguments; const image = new Image();"
        "image.onload = () => done(image.naturalWidth); image.onerror = () => done(0);"
        "image.src = address;",
        address,
    )
    assert loaded == 8 * SIDE


def test_filters_and_clicks_choose_pictures(
    browser: Chrome, large: tuple[Path, list[Entry]]
) -> None:
    path, entries = large
    browser.get(path.as_uri())

    def expect(wanted: list[Entry]) -> None:
        wait_until(lambda: count(browser) == f"{len(wanted):,} of 10,000 pictures")
        assert set(names(browser)) <= {x.name for x in wanted}
        assert names(browser)

    cell = browser.find_element(By.CSS_SELECTOR, 'button[data-target="1"][data-found="0"]')
    confused = [x for x in entries if x.pair == (1, 0)]
    assert cell.text == f"{len(confused):,}"
    cell.click()
    expect(confused)
    assert "chosen" in cell.get_attribute("class")
    cell.click()
    wait_until(lambda: count(browser) == "10,000 pictures")

    Select(browser.find_element(By.NAME, "outcome")).select_by_value("wrong")
    expect([x for x in entries if x.wrong])
    browser.find_element(By.NAME, "ood-least").send_keys("50")
    expect([x for x in entries if x.wrong and x.trust.ood_percentile >= 50])
    browser.find_element(By.CSS_SELECTOR, "button[type=reset]").click()
    wait_until(lambda: count(browser) == "10,000 pictures")

    browser.find_element(By.NAME, "set-most").send_keys("0")
    expect([x for x in entries if not x.trust.prediction_set])
    browser.find_element(By.CSS_SELECTOR, "button[type=reset]").click()
    wait_until(lambda: count(browser) == "10,000 pictures")

    (bar,) = (
        each
        for each in browser.find_elements(By.CSS_SELECTOR, '.bin[data-field="score"]')
        if each.get_attribute("data-lower") == f"{10 / 15:.6f}"
    )
    # A key, as of one who has no mouse.
    bar.send_keys("\n")
    expect([x for x in entries if 10 / 15 < round(x.scores[0], 5) <= 11 / 15])

    browser.find_element(By.CSS_SELECTOR, "button[type=reset]").click()
    browser.find_element(By.NAME, "name").send_keys("/01234")
    expect([entries[1234]])
    browser.find_element(By.NAME, "name").send_keys("x")
    assert browser.find_element(By.ID, "nothing").is_displayed()
    assert not complaints(browser)


def test_a_page_as_narrow_as_a_phone_does_not_scroll_sideways(browser: Chrome, tmp_path) -> None:
    write(tmp_path / "report.html", 30)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    try:
        browser.get((tmp_path / "report.html").as_uri())
        assert count(browser) == "30 pictures"
        assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_an_older_report_leaves_no_sheets_and_keeps_what_is_not_its_own(tmp_path) -> None:
    path, folder = tmp_path / "report.html", tmp_path / "report_files"
    write(path, 300)
    assert list(folder.glob("sheet-*.jpg"))
    (folder / "mine.jpg").touch()
    write(path, 30)
    assert [each.name for each in folder.iterdir()] == ["mine.jpg"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["report.html", "report_files"]


def test_tiles_show_the_map_where_it_is() -> None:
    image = Image.new("RGB", (400, 200), (128, 128, 128))
    array = np.zeros((2, 2), dtype=np.float32)
    array[0, 1] = 1
    plain, drawn = draw(image, [Map(3, array)])
    assert (plain.class_id, drawn.class_id) == (PICTURE, 3)
    assert size_of(plain.file) == size_of(drawn.file) == (SIDE, SIDE // 2)
    assert unpack(pack([plain, drawn])) == (plain, drawn)
    assert unpack(b"") == ()
    (sheet,) = sheets([plain.file, drawn.file])
    with Image.open(io.BytesIO(sheet)) as found:
        pixels = np.asarray(found.convert("RGB")).astype(int)
    assert abs(pixels[5, 5] - 128).max() < 8
    hot, cold = pixels[5, SIDE + 100], pixels[50, SIDE + 5]
    assert hot[0] - hot[2] > 60
    assert abs(cold - 128).max() < 12

"""The page in Chromium, over a real server with real weights."""

import base64
import io
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys

from ..clients.test_trust import calibrated_repository
from ..conftest import served
from .conftest import HOSTILE, shown
from .looking import Look, looking


def pixels(source: str) -> np.ndarray:
    encoded = base64.b64decode(source.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(float)


def test_an_upload_is_classified_and_each_class_has_its_map(page: Look, photograph: Path) -> None:
    page.driver.find_element("css selector", "#picture input[type=file]").send_keys(str(photograph))
    page.wait_for("#classes-1", "Egyptian cat")
    best = page.picture("#maps-1")
    assert page.find("#classes-1 button:first-of-type").get_attribute("aria-pressed") == "true"
    page.click("#classes-1 button:nth-of-type(3)")
    third = page.changes("#maps-1", best)
    assert pixels(third).shape == pixels(best).shape
    assert np.abs(pixels(third) - pixels(best)).mean() > 1
    label = page.text("#classes-1 button:nth-of-type(3) .label")
    page.wait_for("#maps-1 figcaption", label)
    assert "onnxruntime" in page.text("#timings-1")
    assert "is not calibrated" in page.text("#trust-1")
    download = page.find("#maps-1 a[download]")
    assert download.get_attribute("href") == third
    assert page.outside() == []
    assert page.refused() == []


def test_a_picture_is_taken_from_the_camera(page: Look) -> None:
    page.click('#picture button[aria-label="Capture from camera"]')
    page.press("#picture button", "Click to Access Webcam")
    ready = "return document.querySelector('#picture video')?.readyState"
    page.until(lambda: page.driver.execute_script(ready) == 4, "the camera shows nothing")
    page.click('#picture button[aria-label="capture photo"]')
    page.wait_for("#timings-1", "efficientnet_lite0, version 1")
    page.find("#maps-1 figure")


def test_a_picture_is_pasted(page: Look, photograph: Path) -> None:
    page.driver.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]},
    )
    copied = io.BytesIO()
    Image.open(photograph).save(copied, "PNG")
    copy = """
        const [encoded, done] = arguments;
        const bytes = Uint8Array.from(atob(encoded), (each) => each.charCodeAt(0));
        const item = new ClipboardItem({"image/png": new Blob([bytes], {type: "image/png"})});
        navigator.clipboard.write([item]).then(() => done("copied"), (error) => done(`${error}`));
    """
    encoded = base64.b64encode(copied.getvalue()).decode()
    assert page.driver.execute_async_script(copy, encoded) == "copied"
    page.click('#picture button[aria-label="Paste from clipboard"]')
    page.wait_for("#classes-1", "Egyptian cat")


def test_methods_and_opponents_are_shown_and_a_link_restores_them(page: Look) -> None:
    page.click("#examples button[data-value=coffee]")
    page.wait_for("#classes-1", "espresso")
    page.click("#methods-1 label:nth-of-type(2) input")
    page.until(lambda: len(page.all("#maps-1 figure")) == 2, "there are not two maps")
    page.choose("against-1", "cup")
    page.wait_for("#maps-1", "espresso against cup")
    query = page.query("against=968")
    assert "picture=coffee" in query
    assert "class=967" in query
    before = [x.get_attribute("src") for x in page.all("#maps-1 img")]
    page.open(query)
    page.wait_for("#maps-1", "espresso against cup")
    assert [x.get_attribute("src") for x in page.all("#maps-1 img")] == before
    page.find("#picture img")


def test_a_slider_goes_over_layers_and_channels(page: Look) -> None:
    page.click("#examples button[data-value=coffee]")
    page.wait_for("#features-1", "blocks.0, channel 0")
    first = page.picture("#features-1")
    page.find("#channel-1 input[type=range]").send_keys(Keys.ARROW_RIGHT)
    page.wait_for("#features-1", "blocks.0, channel 1")
    second = page.changes("#features-1", first)
    page.find("#layer-1 input[type=range]").send_keys(Keys.ARROW_RIGHT)
    page.changes("#features-1", second)
    page.wait_for("#features-1", "blocks.1, channel 1")
    page.query("layer=1&channel=1")


def test_a_drawn_digit_goes_to_the_model_of_digits(page: Look) -> None:
    page.draw([(70, 60), (200, 60), (120, 230)])
    page.wait_for("#timings-1", "digits, version 1")
    one = page.picture("#maps-1")
    page.draw([(100, 140), (180, 140)])
    page.changes("#maps-1", one)


def test_labels_are_text_whatever_they_hold(page: Look) -> None:
    page.click("#examples button[data-value=seven]")
    page.wait_for("#timings-1", "digits, version 1")
    assert HOSTILE in page.text("#classes-1 .label")
    page.wait_for("#maps-1 figcaption", HOSTILE)
    assert page.driver.title == "Foveate"


def test_two_models_stand_side_by_side(page: Look) -> None:
    page.click("#examples button[data-value=nine]")
    page.find("#maps-1 figure")
    page.choose("other-model", "efficientnet_lite0")
    page.wait_for("#timings-2", "efficientnet_lite0, version 1")
    page.find("#maps-2 figure")
    assert len(page.all("#classes-2 button")) == 5
    assert page.find("#classes-1").rect["x"] < page.find("#classes-2").rect["x"]


def test_it_goes_by_keyboard_and_the_focus_stays(page: Look) -> None:
    page.find("#examples button[data-value=coffee]").send_keys(Keys.ENTER)
    before = page.picture("#maps-1")
    page.find("#classes-1 button:nth-of-type(2)").send_keys(Keys.SPACE)
    page.changes("#maps-1", before)
    held = page.until(
        lambda: page.driver.execute_script("return document.activeElement.dataset.value"),
        "no class has the focus",
    )
    assert held == page.find("#classes-1 [aria-pressed=true]").get_attribute("data-value")


def test_what_is_no_picture_is_refused_in_words(page: Look, tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0 and no more")
    page.driver.find_element("css selector", "#picture input[type=file]").send_keys(str(path))
    page.wait_for("#message [role=alert]", "is no PNG, JPEG, WebP, BMP or GIF picture")


def test_a_link_to_a_picture_that_is_gone_says_so(page: Look) -> None:
    page.open("?picture=0123456789abcdef0123456789abcdef&class=7&layer=99999")
    page.wait_for("#message [role=alert]", "choose it again")


def test_a_calibrated_model_says_how_far_it_is_to_be_believed(tmp_path: Path) -> None:
    with (
        served(calibrated_repository(tmp_path)) as server,
        shown(server) as address,
        looking(address) as page,
    ):
        page.open()
        page.click("#examples button[data-value=coffee]")
        page.wait_for("#trust-1", "The set for a coverage of 0.9: red, green.")
        page.wait_for("#trust-1", "of the answers with this score are right.")
        page.wait_for("#classes-1 button:first-of-type", "confidence 74.2%")
        assert not page.all("#trust-1 .warning")
        page.click("#examples button[data-value=seven]")
        page.wait_for("#trust-1 .warning", "This picture is unusual: 100 % of the pictures")
        page.wait_for("#trust-1 .warning", "The model abstains")


def test_a_server_that_is_gone_is_told_in_words(imagenet_repository: Path) -> None:
    with (
        served(imagenet_repository) as server,
        shown(server, "--timeout", "5") as address,
        looking(address) as page,
    ):
        page.open()
        page.click("#examples button[data-value=coffee]")
        page.find("#maps-1 figure")
        _stop(server)
        page.click("#examples button[data-value=cat]")
        page.wait_for("#timings-1 [role=alert]", f"The server at {server}")
        assert not page.all("#maps-1 figure")
        page.query("picture=cat")  # which shows the answer when the server is there again


def _stop(server: str) -> None:
    port = int(server.rpartition(":")[2])
    for connection in psutil.net_connections("tcp"):
        if connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
            psutil.Process(connection.pid).kill()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_a_telephone_in_light_and_dark(address: str, dark: bool) -> None:
    with looking(address, width=390, height=844, dark=dark) as page:
        page.open()
        page.click("#examples button[data-value=coffee]")
        page.find("#maps-1 figure")
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 390
        colour = page.driver.execute_script(
            "return getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)"
        )
        assert (max(colour[:3]) < 64) == dark

"""The page of `fastlstm plot` in a real browser: chromium, driven by selenium. `make test-browser` runs this."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm import gates_page
from fastlstm.text import CharModel
from fastlstm.trace import Trace, trace

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not os.environ.get("FASTLSTM_REQUIRE_BROWSER"):  # make test-browser sets it: there, nothing is skipped
    pytest.importorskip("selenium", reason="selenium is not installed; make test-browser installs it")
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium and chromedriver are not installed: make test-browser", allow_module_level=True)

TEXT = 'To be, or not to be:\n<i>that</i> is "the" question & </script>\n\tWhether \'tis nobler\U0001f600'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    # A container has no user namespaces for the sandbox, and little shared memory.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def found() -> Trace:
    model = CharModel("".join(sorted(set(TEXT))), 12, seed=3)
    with model.lstm.update() as p:
        p["weight_ih_l0"] *= 8  # so that gates are not all near 0.5
        p["weight_hh_l0"] *= 4
    return trace(model, TEXT)


def spans(browser: Any) -> list[Any]:
    return list(browser.find_elements("css selector", "#text span"))


def colours(browser: Any, step: int) -> tuple[str, str]:
    """Background and text colour as the browser has computed them, without an alpha of 1."""
    script = "const s = getComputedStyle(document.querySelectorAll('#text span')[arguments[0]]);"
    back, front = browser.execute_script(script + "return [s.backgroundColor, s.color]", step)
    return back, front


def choose_unit(browser: Any, unit: int) -> None:
    script = "const e = document.getElementById('unit'); e.value = arguments[0]; e.dispatchEvent(new Event('change'))"
    browser.execute_script(script, unit)


def opened(browser: Any, found: Trace, path: Path, unit: int | None = None) -> None:
    gates_page.write(found, path, unit)
    browser.get(path.as_uri())


def test_the_text_is_shown_as_it_is(browser: Any, found: Trace, tmp_path: Path) -> None:
    opened(browser, found, tmp_path / "p.html")
    shown = [span.get_property("textContent") for span in spans(browser)]
    assert "".join(shown).replace("⏎\n", "\n").replace("⇥", "\t") == TEXT
    assert browser.find_elements("css selector", "#text i") == []
    assert browser.get_log("browser") == [], "no error in the script, and nothing was asked for from outside"


@pytest.mark.parametrize("part", ["i", "f", "o", "g", "c", "h"])
def test_a_chosen_unit_colours_the_text(browser: Any, found: Trace, tmp_path: Path, part: str) -> None:
    """Each character's computed colours are those of its value in Python."""
    opened(browser, found, tmp_path / "p.html", unit=0)
    browser.find_element("css selector", f"#parts input[value={part}]").find_element("xpath", "..").click()
    seen = set()
    for unit in (0, 7, 11):
        choose_unit(browser, unit)
        for step in (0, 5, 20, 23, len(found) - 1):
            expected = gates_page.colour_of(found, part, step, unit)
            assert colours(browser, step) == expected, f"step {step}, unit {unit}"
            seen.add(expected)
    assert len(seen) > 5, "the test can tell colours apart"


def test_ways_to_choose_a_unit(browser: Any, found: Trace, tmp_path: Path) -> None:
    """By keys on the slider, by typing a number, by a click into the map; beyond the last unit is the last one."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    opened(browser, found, tmp_path / "p.html", unit=4)
    field, slider = browser.find_element("id", "unit"), browser.find_element("id", "slider")
    assert field.get_property("value") == slider.get_property("value") == "4"
    slider.send_keys(Keys.ARROW_RIGHT)
    assert field.get_property("value") == "5"
    assert colours(browser, 9) == gates_page.colour_of(found, "c", 9, 5)
    field.clear()
    field.send_keys("99", Keys.ENTER)
    assert slider.get_property("value") == "11"
    the_map = browser.find_element("id", "map")
    height = the_map.size["height"]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", the_map)
    ActionChains(browser).move_to_element_with_offset(
        the_map, 0, round(height * 2.5 / 12 - height / 2)
    ).click().perform()
    assert field.get_property("value") == "2"
    assert colours(browser, 9) == gates_page.colour_of(found, "c", 9, 2)


def test_the_map_has_the_colours_of_all_units(browser: Any, found: Trace, tmp_path: Path) -> None:
    opened(browser, found, tmp_path / "p.html", unit=4)
    script = """
const map = document.getElementById("map"), image = map.getContext("2d").getImageData(0, 0, map.width, map.height);
return [map.width, map.height, Array.from(image.data)]"""
    width, height, data = browser.execute_script(script)
    assert (width, height) == (len(found), 12)
    pixels = np.array(data).reshape(12, len(found), 4)
    for step, unit in ((0, 0), (17, 3), (40, 11)):
        back, _ = gates_page.colour_of(found, "c", step, unit)
        assert f"rgb({', '.join(map(str, pixels[unit, step, :3]))})" == back


def test_the_reading_tells_the_value(browser: Any, found: Trace, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    opened(browser, found, tmp_path / "p.html", unit=4)
    ActionChains(browser).move_to_element(spans(browser)[3]).perform()
    said = browser.find_element("id", "reading").text
    assert said.startswith('step 4, "b": cell state of unit 4 = ')
    low, high = found.range_of("c")
    wanted = float(np.clip(found.parts["c"][3, 4], low, high))
    assert float(said.rpartition("= ")[2]) == pytest.approx(wanted, abs=(high - low) / 400 + 0.006)


def test_a_series_has_its_steps(browser: Any, tmp_path: Path) -> None:
    layer = fl.GRU(2, 5, seed=1)
    found = trace(layer, np.random.default_rng(0).standard_normal((30, 2)).astype(np.float32))
    opened(browser, found, tmp_path / "p.html", unit=1)
    assert [span.text for span in spans(browser)] == [str(t) for t in range(30)]
    for step in (0, 12, 29):
        assert colours(browser, step) == gates_page.colour_of(found, "h", step, 1)

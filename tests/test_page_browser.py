"""The page in a real browser: opens from disk without a network, sorts, zooms, fits a phone."""

import shutil

import pytest
from page_results import make_results

from harness.reports.html import write_page

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROME = next(filter(None, map(shutil.which, BROWSERS)), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROME is None or DRIVER is None, reason="no Chromium with chromedriver on this machine"),
]
WIDTHS = (375, 1280)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_page(make_results(tmp_path_factory.mktemp("browser") / "results"))


@pytest.fixture(scope="module")
def browser():
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROME
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(120)
    driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield driver
    driver.quit()


def resized(browser, page, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.get(page.as_uri())
    return browser


def column(browser, table, place):
    script = (
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map(r => r.cells[arguments[1]].innerText)"
    )
    return browser.execute_script(script, table, place)


def view(browser):
    return browser.execute_script("return document.querySelector('.zoom svg').getAttribute('viewBox')").split()


def numbers(texts):
    return [float(text) for text in texts]


def test_it_opens_from_disk_without_a_network_and_without_complaint(browser, page):
    resized(browser, page, 1280)
    assert "Slow-fast" in browser.title
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    asked = [entry["message"] for entry in browser.get_log("performance") if "requestWillBeSent" in entry["message"]]
    assert asked
    assert not any('"url":"http' in message for message in asked)


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows_the_page(browser, page, width):
    resized(browser, page, width)
    browser.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
    wide, seen = browser.execute_script(
        "const e = document.documentElement; return [Math.max(e.scrollWidth, document.body.scrollWidth), e.clientWidth]"
    )
    assert wide <= seen
    assert seen > width - 20  # what a scroll bar takes
    inner = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].some(e => e.scrollWidth > e.clientWidth)"
    )
    assert inner or width > 500  # on a phone, tables scroll inside themselves


def test_a_head_sorts_by_click_and_by_key_and_chance_stays_below(browser, page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    resized(browser, page, 1280)
    table = "#gates_mini > .scroll table"
    head = browser.find_elements(By.CSS_SELECTOR, f"{table} thead th")[1]
    before = column(browser, table, 1)
    head.find_element(By.TAG_NAME, "button").click()
    rising = [float(text.split()[0]) for text in column(browser, table, 1)]
    assert head.get_attribute("aria-sort") == "ascending"
    assert rising[:-1] == sorted(rising[:-1])
    assert column(browser, table, 0)[-1] == "chance"
    head.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    falling = [float(text.split()[0]) for text in column(browser, table, 1)]
    assert head.get_attribute("aria-sort") == "descending"
    assert falling[:-1] == rising[-2::-1]
    assert sorted(column(browser, table, 1)) == sorted(before)
    other = browser.find_elements(By.CSS_SELECTOR, f"{table} thead th")[0]
    other.find_element(By.TAG_NAME, "button").send_keys(Keys.SPACE)
    assert head.get_attribute("aria-sort") is None
    assert other.get_attribute("aria-sort") == "ascending"
    assert column(browser, table, 0)[:-1] == sorted(column(browser, table, 0)[:-1])


def test_a_figure_zooms_by_button_wheel_and_key_moves_and_resets(browser, page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
    from selenium.webdriver.common.by import By

    resized(browser, page, 1280)
    box = browser.find_element(By.CSS_SELECTOR, ".zoom")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
    whole = view(browser)
    button = box.find_element(By.XPATH, "..").find_element(By.CSS_SELECTOR, "button[aria-label='Zoom in']")
    button.click()
    nearer = view(browser)
    assert float(nearer[2]) < float(whole[2])
    assert float(nearer[2]) / float(nearer[3]) == pytest.approx(float(whole[2]) / float(whole[3]), rel=1e-3)
    browser.execute_script("arguments[0].focus({preventScroll: true})", box)
    ActionChains(browser).scroll_from_origin(ScrollOrigin.from_element(box), 0, -300).perform()
    nearest = view(browser)
    assert float(nearest[2]) < float(nearer[2])
    ActionChains(browser).drag_and_drop_by_offset(box, 80, 0).perform()
    moved = view(browser)
    assert float(moved[0]) < float(nearest[0])
    assert moved[2] == nearest[2]
    ActionChains(browser).double_click(box).perform()
    assert numbers(view(browser)) == pytest.approx(numbers(whole), rel=1e-5)
    browser.execute_script("arguments[0].focus({preventScroll: true})", box)
    ActionChains(browser).send_keys("+").perform()
    assert float(view(browser)[2]) < float(whole[2])
    ActionChains(browser).send_keys("0").perform()
    assert numbers(view(browser)) == pytest.approx(numbers(whole), rel=1e-5)


def test_a_number_leads_to_its_rows(browser, page):
    from selenium.webdriver.common.by import By

    resized(browser, page, 375)
    link = browser.find_element(By.CSS_SELECTOR, "#gates_mini tbody tr:nth-child(2) td a")
    browser.execute_script("arguments[0].click()", link)
    target = browser.execute_script("return document.querySelector(':target').id")
    assert target == "row-gates_mini-static_tanh" == browser.current_url.split("#")[1]
    top = browser.execute_script("return document.querySelector(':target').getBoundingClientRect().top")
    assert -5 <= top < 900

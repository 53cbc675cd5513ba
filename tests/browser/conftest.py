"""One browser for all of these tests, and how a notebook is opened in it."""

import lab
import pytest


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium; without it, and without Playwright, the tests say so and are skipped."""
    playwright = pytest.importorskip("playwright.sync_api")
    if lab.browser() is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=lab.browser(), args=[*lab.QUIET])


@pytest.fixture
def notebook(site, browser):
    """Opens a notebook of the module's `site` (an address of JupyterLab) in a page of its own."""
    lab.IMAGES.mkdir(exist_ok=True)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    yield lambda name: lab.Notebook(page, site, f"{name}.ipynb")
    page.close()

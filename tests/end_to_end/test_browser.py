"""The two pages in a real browser, where there is one: no errors, no network, no overflow."""

import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("uvicorn")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
if CHROMIUM is None:
    pytest.skip("there is no chromium", allow_module_level=True)

from quant_dllm.cli.main import main  # noqa: E402
from quant_dllm.models.load import load  # noqa: E402
from quant_dllm.pipeline.quantize import quantize  # noqa: E402
from tests.conftest import ROUNDED, SMALL_RECIPE  # noqa: E402
from tests.end_to_end.test_serve import serving  # noqa: E402


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        made = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def report(small_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("browser") / "packed"
    quantize(small_model, out, ROUNDED, settings=SMALL_RECIPE)
    assert main(["report", str(out), "--sequences", "2", "--length", "8"]) == 0
    return out / "report.html"


def opened(browser, url, width, scheme, **options):
    """Open a page; return it with the errors that it logs and the addresses that it asks."""
    page = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce",
        **options,
    ).new_page()  # fmt: skip
    errors, asked = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    return page, errors, asked


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_report_plays_offline(browser, report, width, scheme):
    page, errors, asked = opened(browser, report.as_uri(), width, scheme, offline=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("svg").count() >= 4
    page.locator(".sample input").first.fill("3")
    assert page.locator(".sample").first.locator(".t.hidden").count() == 2 * (8 - 3)
    assert errors == [] and asked == [report.as_uri()]
    grounds = {"light": "rgb(246, 247, 249)", "dark": "rgb(12, 16, 21)"}
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == grounds[scheme]


def test_the_live_page_shows_every_step(browser, small_model):
    with serving(load(small_model), slow=0.02) as (url, _):
        page, errors, asked = opened(browser, f"{url}/", 390, "light")
        page.fill("#max_tokens", "8")
        page.fill("#block_length", "8")
        page.click("#go")
        page.locator("#range:enabled").wait_for(timeout=60_000)
        assert "8 tokens in 8 steps" in page.inner_text("#said")
        page.locator("#range").fill("2")
        assert page.locator("#canvas .t.hidden").count() == 6
        page.fill("#max_tokens", "64")  # and the prompt is longer than nothing
        page.click("#go")
        page.locator("#said.wrong").wait_for(timeout=60_000)
        assert "trained on 64" in page.inner_text("#said")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert {a.removeprefix(url) for a in asked} == {"/", "/v1/denoise"}
        assert [e for e in errors if "400" not in e] == []

"""Make the pictures of ``docs/pictures``: terminals and pages, as a user sees them.

    quant-dllm quantize tiny -o tiny-2bit
    recipes="16-bit|(rtn|awq|slim-llm|gptq)-2bit|gptq-3bit|quant-dllm-2bit(-paper|-untuned|)"
    grep -E "recipe.: ..name.: .($recipes).[,}]" benchmarks/results/compare-tiny.jsonl > some.jsonl
    quant-dllm report tiny-2bit --temperature 0.7 --compared some.jsonl
    python docs/make_pictures.py tiny-2bit

Terminals are drawn by rich, and all is photographed by the Chromium that is on the path.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright
from rich.console import Console, Group
from rich.text import Text

from quant_dllm import load, quantize
from quant_dllm.cli.canvas import caption, drawn
from quant_dllm.cli.watch import QuantizeView
from quant_dllm.cli.watch_tuning import TuningView
from quant_dllm.generation.draft import Draft
from quant_dllm.generation.generate import chosen_sampling
from quant_dllm.models.load import DiffusionLM
from quant_dllm.models.source import open_model

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.end_to_end.test_serve import serving

OUT = Path(__file__).parent / "pictures"
PROMPT = "Once upon a time, there was a little dog. He"
COLUMNS = 92


def terminal(browser: Browser, name: str, command: str, shown: Any) -> None:
    """Photograph a terminal that shows a command and what stands below it."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    console.print(Text(f"$ {command}", style="bold"))
    console.print(shown)
    page = browser.new_page(viewport={"width": 1180, "height": 600})
    page.set_content(console.export_svg(title=command.split(" -")[0]))
    page.locator("svg").screenshot(path=OUT / f"{name}.png", omit_background=True)


def chatting(browser: Browser, model: DiffusionLM) -> None:
    """Photograph an answer two thirds of which is written."""
    sampling = chosen_sampling(model, 96, {"temperature": 0.7, "block_length": 48})
    draft = Draft.begin(model, PROMPT, sampling, length=96, seed=1, watched=True)
    list(islice(draft.steps(), 62))
    shown = Group(Text(f"\n> {PROMPT}"), drawn(draft, PROMPT), caption(draft))
    terminal(
        browser, "chat", "quant-dllm chat tiny-2bit --temperature 0.7 --block-length 48", shown
    )


class Photograph(QuantizeView):
    """A view that keeps what it shows at one layer, and behind one update."""

    layers: Any = None
    updates: Any = None

    def __call__(self, items: Iterable[Any], what: str, total: int) -> Iterator[Any]:
        """Pass items on."""
        self.began, self.total, self.done, tuning = time.monotonic(), total, [], TuningView()
        for item in items:
            self.take(item)
            tuning.take(item)
            if what.startswith("quantizing") and len(self.done) == 27:
                self.layers = self.picture(what, COLUMNS)
            if what == "tuning" and tuning.seen == 64:
                self.updates = tuning.picture(what)
            yield item


def quantizing(browser: Browser) -> None:
    """Photograph the live view at layer 27 of 42, and at update 64 of 80."""
    view = Photograph(open_model("tiny").config.blocks)
    settings = {"tuning.steps": 80, "tuning.validate_every": 10}
    with tempfile.TemporaryDirectory() as folder:
        quantize("tiny", Path(folder) / "out", settings=settings, track=view)
    told = " ".join(f"--set {path}={value}" for path, value in settings.items())
    terminal(browser, "quantize", "quant-dllm quantize tiny -o tiny-2bit", view.layers)
    terminal(browser, "tuning", f"quant-dllm quantize tiny -o tiny-2bit {told}", view.updates)


def reporting(browser: Browser, folder: Path) -> None:
    """Photograph the report, wide and narrow, light and dark."""
    for name, width, scheme in (
        ("light", 1100, "light"), ("dark", 1100, "dark"), ("narrow", 390, "light"),
    ):  # fmt: skip
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.goto((folder / "report.html").resolve().as_uri())
        page.locator(".sample input").first.fill("35")
        page.screenshot(path=OUT / f"report-{name}.png", full_page=True)


def denoising(browser: Browser, model: DiffusionLM) -> None:
    """Photograph the page of the server while an answer is half written."""
    with serving(model) as (url, _):
        for name, width, scheme in (("light", 1200, "light"), ("narrow-dark", 390, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 820}, color_scheme=scheme)
            page.goto(f"{url}/")
            page.fill("#prompt", PROMPT)
            page.fill("#max_tokens", "96")
            page.fill("#block_length", "48")
            page.click("#go")
            page.locator("#range:enabled").wait_for(timeout=120_000)
            page.locator("#range").fill("60")
            page.screenshot(path=OUT / f"live-{name}.png", full_page=width < 500)


def main() -> None:
    """Make all."""
    folder = Path(sys.argv[1])
    model = load(folder)
    chromium = shutil.which("chromium") or shutil.which("chrome")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        chatting(browser, model)
        reporting(browser, folder)
        denoising(browser, model)
        quantizing(browser)


if __name__ == "__main__":
    main()

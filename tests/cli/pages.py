"""A page as a browser shows it."""

import shutil
import xml.etree.ElementTree as ElementTree
from base64 import b64decode
from dataclasses import dataclass
from html.parser import HTMLParser

from playwright.sync_api import sync_playwright

BROWSERS = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
)
PHONE = {"width": 390, "height": 800}


@dataclass(frozen=True)
class Shown:
    """What someone sees of a page.

    Attributes:
        title: The window's title.
        headings: Its headings, in order.
        pictures: Width of each picture in pixels, as it is by itself.
        sideways: Pixels by which it is wider than a phone.
        fetched: Addresses that it asked for, itself first.
        complaints: What the browser says is wrong with it.
    """

    title: str
    headings: list[str]
    pictures: list[int]
    sideways: int
    fetched: list[str]
    complaints: list[str]


def show(file):
    """Show a file in a browser; where there is none, read of it what can be read without one."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    return _read(file) if found is None else _browse(file, found)


def _browse(file, browser):
    fetched, complaints = [], []
    with sync_playwright() as playwright:
        # Root can't have Chromium's sandbox; the page is our own.
        running = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = running.new_page(viewport=PHONE)
        page.on("request", lambda request: fetched.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(file.as_uri(), wait_until="load")
        shown = Shown(
            title=page.title(),
            headings=page.locator("h1, h2").all_inner_texts(),
            pictures=page.evaluate("[...document.images].map(one => one.naturalWidth)"),
            sideways=page.evaluate("document.documentElement.scrollWidth - innerWidth"),
            fetched=[url for url in fetched if not url.startswith("data:")],
            complaints=complaints,
        )
        running.close()
    return shown


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.text = {}
        self.pictures = []
        self.fetched = []
        self._tag = ""

    def handle_starttag(self, tag, attrs):
        self._tag = tag
        for name, value in attrs:
            if name in ("src", "href"):
                before, _, after = value.partition(",")
                if before == "data:image/svg+xml;base64":
                    width = ElementTree.fromstring(b64decode(after)).get("width")
                    self.pictures.append(int(float(width.removesuffix("pt"))))
                else:
                    self.fetched.append(value)

    def handle_endtag(self, tag):
        self._tag = ""

    def handle_data(self, data):
        self.text.setdefault(self._tag, []).append(data)


def _read(file):
    reader = _Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    return Shown(
        title=reader.text["title"][0],
        headings=[*reader.text["h1"], *reader.text["h2"]],
        pictures=reader.pictures,
        sideways=0,
        fetched=[file.as_uri(), *reader.fetched],
        complaints=[],
    )

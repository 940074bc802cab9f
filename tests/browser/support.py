"""What the tests of the site share: one build, a server on loopback, Chromium, and a record of what went wrong."""

import fcntl
import functools
import http.server
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from flashmoe_nb.runner import find_chromium

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = Path(__file__).with_name("98_sample.ipynb")


def build_tree(tree):
    """Copy what the site is built from to `tree`, add the sample notebook, build; returns what Sphinx complained about.

    A copy, because the sample must not appear in the checkout's own site.
    """
    generated = shutil.ignore_patterns("_site", "nbs", "api", "index.ipynb", "__pycache__")
    shutil.copytree(ROOT / "docs", tree / "docs", ignore=generated)
    shutil.copytree(ROOT / "nbs", tree / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(SAMPLE, tree / "nbs")
    shutil.copy(ROOT / "settings.ini", tree)
    (tree / "flashmoe_nb").symlink_to(ROOT / "flashmoe_nb")
    command = [sys.executable, "-m", "sphinx", "-q", "docs", "docs/_site"]
    built = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    return built.stderr


def built_site(shared):
    """(folder of the built site, Sphinx's complaints), built once in `shared` however many processes ask for it."""
    tree, complaints = shared / "tree", shared / "complaints.txt"
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complaints.exists():
            shutil.rmtree(tree, ignore_errors=True)
            complaints.write_text(build_tree(tree))
    return tree / "docs" / "_site", complaints.read_text()


@pytest.fixture(scope="session")
def site_build(tmp_path_factory):
    """The built site and Sphinx's complaints, shared by pytest-xdist's workers."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if base.name.startswith("popen-") else base) / "site"
    shared.mkdir(exist_ok=True)
    return built_site(shared)


@pytest.fixture(scope="session")
def site(site_build):
    """The folder of the built site."""
    return site_build[0]


@contextmanager
def serve(folder):
    """Serve `folder` on a free port of 127.0.0.1; yields its URL."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): ...

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="session")
def chromium():
    """Chromium, started once; skips the test where there is none."""
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on the PATH (Debian: apt install chromium; or set BROWSER_PATH)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser
        browser.close()


class Visit:
    """A page that remembers whatever went wrong on it: failed requests, errors, requests to another host."""

    def __init__(self, browser, base, **context):
        self.context = browser.new_context(**context)
        self.context.set_default_timeout(90_000)  # milliseconds; other tests may be using the same cores
        self.page, self.base, self.trouble = self.context.new_page(), base, []
        note = self.trouble.append
        self.page.on("pageerror", lambda error: note(f"uncaught: {error}"))
        self.page.on("console", lambda m: note(f"console: {m.text} {m.location}") if m.type == "error" else None)
        self.page.on("requestfailed", lambda r: note(f"failed: {r.url} {r.failure}"))
        self.page.on("response", lambda r: note(f"{r.status}: {r.url}") if r.status >= 400 else None)
        self.page.on("request", lambda r: None if self.is_here(r.url) else note(f"another host: {r.url}"))

    def is_here(self, url):
        here = (self.base, self.base.replace("http:", "ws:"), "data:", "blob:")
        return url.startswith(here)

    def open(self, path):
        self.page.goto(self.base + path)
        self.page.wait_for_load_state("networkidle")
        return self.page

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.context.close()
        assert error is not None or not self.trouble, "\n".join(self.trouble)

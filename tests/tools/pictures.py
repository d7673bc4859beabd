"""The README's pictures, taken anew: ``python tests/tools/pictures.py outputs/bert-example``.

Writes ``page.png`` and ``explorer.png`` into the sweep's folder: its page, which must be there,
and the explorer of the analysis notebook, as Chromium shows them.
"""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.browser import launched
from tests.jupyterlab import EXPLORER, Lab, jupyterlab

SIZE = {"width": 1100, "height": 1620}


def main(out: Path) -> None:
    """Take both."""
    with launched() as browser, tempfile.TemporaryDirectory() as folder:
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto((out / "index.html").as_uri())
        keep(page.screenshot(), out / "page.png")
        with jupyterlab(Path(folder), out) as address:
            lab = Lab(browser.new_page(viewport=SIZE), address)
            keep(lab.page.locator(EXPLORER).screenshot(), out / "explorer.png")


def keep(png: bytes, path: Path) -> None:
    """In 256 colours: a third of the size, and the eye sees no less."""
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

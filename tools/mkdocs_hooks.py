"""What the site shows from outside docs/: results, configs, the notebook.

Pages link to these as files of the repository do, `../results/x.png`, so that the same link works
where the Markdown is read as it is. In the site they lie beside the pages.
"""

import pathlib
import posixpath
import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHOWN = (
    "configs/*.py", "notebooks/*.ipynb",
    *(f"results/**/*.{suffix}" for suffix in ("csv", "json", "jsonl", "md", "png", "txt")),
)  # fmt: skip

_LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files that lie outside docs/."""
    for path in sorted({path for pattern in SHOWN for path in ROOT.glob(pattern)}):
        if "checkpoints" in path.parts:
            continue
        name = path.relative_to(ROOT).as_posix()
        file = File(name, str(ROOT), config.site_dir, config.use_directory_urls)
        file.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turns links between files of the repository into links between files of the site."""
    here = page.file.src_uri
    outside = (ROOT / here).exists()
    in_repository = posixpath.dirname(here if outside else f"docs/{here}")

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(in_repository, link[1]))
        return posixpath.relpath(target.removeprefix("docs/"), posixpath.dirname(here) or ".")

    return _LINK.sub(moved, markdown)

"""Hooks of the documentation site: pages from files outside docs/, and links that hold there.

The Markdown is written for the repository, where `../ds_configs/README.md` is a file. On the site that is
a page of its own; a link to a file that is not a page becomes its path as text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {
    "index.md": "README.md",
    "ds_configs.md": "ds_configs/README.md",
    "benchmarks.md": "benchmarks/RESULTS.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
"""Page of the site → file of the repository."""
_PAGE_OF = {source: page for page, source in PAGES.items()}
_LINK = re.compile(r"\[([^\[\]]*)\]\((?!\w+:)([^()#\s]+)(#[^()\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages whose files lie outside docs/."""
    root = Path(config.docs_dir).parent
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(root / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links between files of the repository as links between pages of the site."""
    here = PurePosixPath(PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def replace(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        source = os.path.normpath(here.parent / target)
        site_path = _PAGE_OF.get(source, source.removeprefix("docs/"))
        if files.get_file_from_path(site_path) is None:
            return text if text == source else f"{text} (`{source}`)"
        return f"[{text}]({os.path.relpath(site_path, Path(page.file.src_uri).parent)}{anchor})"

    return _LINK.sub(replace, markdown)

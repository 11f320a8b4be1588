"""For mkdocs: links that leave docs/ (to the source, to reproductions) become links to the repository."""

import posixpath
import re
from typing import Any

LINK = re.compile(r"\]\((?!\w+:|#|/)([^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Point every relative link that lies outside docs/ at the repository's main branch."""
    here = posixpath.dirname(f"docs/{page.file.src_uri}")

    def target(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(here, match.group(1)))
        if path.startswith("docs/"):
            return match.group(0)
        return f"]({config.repo_url}/blob/main/{path})"

    return LINK.sub(target, markdown)

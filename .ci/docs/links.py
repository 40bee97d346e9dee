"""Links between the pages of a folder, followed."""

import html.parser
import pathlib
import urllib.parse


class _Page(html.parser.HTMLParser):
    """The places and the links of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.places, self.links = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.places.update(given[name] for name in ("id", "name") if given.get(name))
        self.links.update(given[name] for name in ("href", "src") if given.get(name))


def dead(folder: pathlib.Path) -> list[str]:
    """Returns "page: link" for each link within the folder that leads to no file or to no place in it."""
    pages = {path.resolve(): _Page(path.read_text("utf-8")) for path in folder.rglob("*.html")}
    found = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            place = urllib.parse.unquote(parts.fragment)
            if not target.is_file() or (place and target in pages and place not in pages[target].places):
                found.append(f"{path.relative_to(folder.resolve())}: {link}")
    return found

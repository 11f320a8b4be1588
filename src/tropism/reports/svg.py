"""Turn a figure's SVG into markup for the page: allowed elements only, no style attributes, ids of its own.

There are two reasons to rewrite it: the page's Content-Security-Policy forbids inline styles and scripts, and a file in
a results folder is untrusted input, so anything but drawing is dropped. The page's style sheet gives every colour a dark
twin, which is how a figure follows the dark theme.
"""

import re
import xml.etree.ElementTree as ET

from markupsafe import Markup, escape

from tropism.errors import RunFolderError

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
_ELEMENTS = {
    "svg",
    "g",
    "defs",
    "path",
    "rect",
    "circle",
    "ellipse",
    "line",
    "polyline",
    "polygon",
    "text",
    "tspan",
    "clipPath",
    "use",
    "linearGradient",
    "stop",
    "image",
}
_ATTRIBUTES = {
    "id",
    "d",
    "x",
    "y",
    "x1",
    "y1",
    "x2",
    "y2",
    "cx",
    "cy",
    "r",
    "rx",
    "ry",
    "width",
    "height",
    "points",
    "transform",
    "viewBox",
    "clip-path",
    "fill",
    "fill-opacity",
    "fill-rule",
    "stroke",
    "stroke-width",
    "stroke-opacity",
    "opacity",
    "stroke-linejoin",
    "stroke-linecap",
    "stroke-dasharray",
    "stroke-dashoffset",
    "stroke-miterlimit",
    "text-anchor",
    "font-size",
    "font-weight",
    "font-style",
    "offset",
    "stop-color",
    "gradientUnits",
    "preserveAspectRatio",
}
_LOCAL = re.compile(r"url\(#([\w.-]+)\)")
_FONT = re.compile(r"(?P<style>italic |oblique )?(?P<weight>bold |[1-9]00 )?(?P<size>[\d.]+)px")
_REFERENCE = re.compile(r"#([\w.-]+)")
LARGEST = 2_000_000
"""Characters of one figure; a page of larger ones would not open in a second."""


def inline(text: str, prefix: str, label: str) -> Markup:
    """Return the figure as markup: sized by the page, described by `label`, its ids under `prefix`.

    Raises:
        RunFolderError: the text is not an SVG, or larger than two million characters.
    """
    if len(text) > LARGEST:
        raise RunFolderError(f"{label}: the SVG has {len(text):,} characters, more than {LARGEST:,}; draw fewer points")
    # The parser would expand them, and a few lines of entities expand to gigabytes.
    if "<!ENTITY" in text:
        raise RunFolderError(f"{label}: the SVG declares entities, which a figure does not need; draw it again")
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise RunFolderError(f"{label}: is not a readable SVG ({error}); draw it again") from None
    if root.tag != f"{{{SVG}}}svg":
        raise RunFolderError(f"{label}: is not an SVG, its root is {root.tag}")
    box = root.get("viewBox") or f"0 0 {_plain(root.get('width'))} {_plain(root.get('height'))}"
    referred = set(_REFERENCE.findall(text))
    body = "".join(_markup(child, prefix, referred) for child in root)
    return Markup('<svg viewBox="{}" role="img" aria-label="{}">{}</svg>').format(box, label, Markup(body))


def _plain(length: str | None) -> str:
    return re.sub(r"[a-z%]+$", "", length or "100")


def _markup(element: ET.Element, prefix: str, referred: set[str]) -> str:
    namespace, _, name = element.tag.rpartition("}") if isinstance(element.tag, str) else ("", "", "")
    if namespace != f"{{{SVG}" or name not in _ELEMENTS:
        return ""
    attributes = _attributes(element, prefix, referred)
    # matplotlib puts heat maps in as pictures; a picture from anywhere else would be a request to the network.
    if name == "image" and not attributes.get("href", "").startswith("data:image/png;base64,"):
        return ""
    if name == "use" and not attributes.get("href", "").startswith("#"):
        return ""
    written = "".join(f' {key}="{escape(value)}"' for key, value in attributes.items())
    inner = str(escape(element.text or "")) if name in {"text", "tspan"} else ""
    for child in element:
        inner += _markup(child, prefix, referred)
        if name in {"text", "tspan"}:
            inner += str(escape(child.tail or ""))
    return f"<{name}{written}>{inner}</{name}>"


def _attributes(element: ET.Element, prefix: str, referred: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in element.attrib.items():
        if key in ("href", f"{{{XLINK}}}href"):
            found["href"] = f"#{prefix}-{value[1:]}" if value.startswith("#") else value
        elif key == "style":
            found |= _declarations(value, prefix)
        elif key in _ATTRIBUTES:
            found[key] = _value(value, prefix)
    # Ids must be unique on the page, and most of matplotlib's are never referred to.
    if (name := found.pop("id", None)) in referred:
        found["id"] = f"{prefix}-{name}"
    return found


def _declarations(style: str, prefix: str) -> dict[str, str]:
    found = {}
    for declaration in style.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font" and (font := _FONT.search(value)):
            found["font-size"] = font["size"]
            if font["weight"]:
                found["font-weight"] = font["weight"].strip()
            if font["style"]:
                found["font-style"] = font["style"].strip()
        elif name == "font-size":
            found[name] = value.removesuffix("px")
        elif name in _ATTRIBUTES:
            found[name] = _value(value, prefix)
    return found


def _value(value: str, prefix: str) -> str:
    """Keep references within the figure; drop `url(...)` to anywhere else."""
    if "url(" in value:
        local = _LOCAL.fullmatch(value.strip())
        return f"url(#{prefix}-{local[1]})" if local else "none"
    return value

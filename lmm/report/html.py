"""A page of HTML with style and script within, under a policy that lets nothing else in."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from lmm.report.tables import short_name

_ASSETS = Path(__file__).parent / "assets"


def render(template: str, folders: Sequence[Path] = (), **values: Any) -> str:
    """A template filled in.

    template  NAME.html.j2; a NAME.css beside it follows the style that all pages have
    folders   where it is looked for before the report's own
    """
    places = [*folders, _ASSETS]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(places),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short_name"] = short_name
    own = [folder / template.replace(".html.j2", ".css") for folder in folders]
    style = "".join(file.read_text() for file in (_ASSETS / "report.css", *own))
    script = (_ASSETS / "report.js").read_text()
    return environment.get_template(template).render(
        **values,
        style=style,
        script=script,
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
    )


def _csp_hash(text: str) -> str:
    """What a content security policy calls an inline style or script that may be used."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"

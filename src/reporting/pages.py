"""Self-contained HTML with one inline style and one inline script.

A content security policy names both by their hash and forbids everything else, so a page keeps
what it promises even when a name in it is hostile.
"""

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render_page(template: str, style: str, script: str, **content: Any) -> str:
    """The page `template` with `content`, escaped; names of files in the folder `templates`."""
    inline = {"style": resource(style), "script": resource(script)}
    inline["policy"] = (
        f"default-src 'none'; img-src data:; style-src '{_hash(inline['style'])}'; "
        f"script-src '{_hash(inline['script'])}'; base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        loader=PackageLoader("src.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**inline, **content)


def resource(name: str) -> str:
    """Text of a file in `templates`."""
    return (files("src.reporting") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")

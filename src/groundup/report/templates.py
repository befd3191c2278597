"""Filling the HTML templates of this folder."""

from pathlib import Path
from typing import Any

import jinja2


def fill(template: str, **content: Any) -> str:
    """The page. All text is escaped but `Markup`; a name that the template uses and `content` lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**content)

"""Pages from the Jinja templates of the package."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2
    from PIL import Image


def templates(package: str, *, autoescape: bool = True) -> jinja2.Environment:
    """The templates beside the modules of `package`. A value that is missing is an error. `autoescape` is for
    HTML; whoever turns it off escapes what others wrote."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader(package, ""),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def jpeg_uri(image: Image.Image) -> str:
    """The picture inside a page, as a data URI."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")

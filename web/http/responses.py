"""The response class for JSON bodies."""

import json
from typing import Any

from flask import Response
from werkzeug.datastructures import Headers


class JsonResponse(Response):
    """A response with a JSON document. Its headers are sent as they are: werkzeug would copy all and quote Location."""

    def __init__(self, value: Any, status: int = 200, mimetype: str = "application/json") -> None:
        super().__init__(json.dumps(value), status, mimetype=mimetype)

    def get_wsgi_headers(self, environ: dict[str, Any]) -> Headers:  # noqa: ARG002
        """Returns the headers as they are."""
        return self.headers

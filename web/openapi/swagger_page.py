"""The page /docs: Swagger UI, to read and try the API. It loads nothing from other hosts.

Its files are in a package that is located but never imported, because the import would load a whole framework.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from flask import Blueprint, Response, abort, json

blueprint = Blueprint("docs", __name__)

SWAGGER_PACKAGE: Final = "flask_openapi3_swagger"
SWAGGER_FILES: Final = {
    "swagger-ui.css": ("css/swagger-ui.css", "text/css"),
    "swagger-ui-bundle.js": ("js/swagger-ui-bundle.js", "text/javascript"),
    "swagger.svg": ("images/swagger.svg", "image/svg+xml"),
}
SWAGGER_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Payments API</title>
<link rel="icon" href="/docs/swagger.svg">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
# Without `validatorUrl: null` the page would send the document's address to swagger.io.
SWAGGER_SCRIPT: Final = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#page",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null,
});
"""
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
)


@blueprint.get("/")
def get_index() -> Response:
    """Returns links to the API's documentation."""
    links = {"name": "payments", "docs": "/docs", "openapi": "/openapi.json"}
    return Response(json.dumps(links), mimetype="application/json")


@blueprint.get("/docs")
def get_page() -> Response:
    """Returns the page to read and try the API."""
    response = Response(SWAGGER_PAGE, mimetype="text/html")
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["X-Frame-Options"] = "DENY"  # for browsers that do not know frame-ancestors
    return response


@blueprint.get("/docs/<name>")
def get_file(name: str) -> Response:
    """Returns a file that the page loads."""
    if name == "start.js":
        return Response(SWAGGER_SCRIPT, mimetype="text/javascript")
    if name not in SWAGGER_FILES:
        abort(404)
    path, media_type = SWAGGER_FILES[name]
    response = Response((_folder() / path).read_bytes(), mimetype=media_type)
    response.headers["Cache-Control"] = "public, max-age=3600"
    return response


@cache
def _folder() -> Path:
    package = find_spec(SWAGGER_PACKAGE)
    if not package or not package.submodule_search_locations:
        abort(404)  # the package is not installed
    return Path(package.submodule_search_locations[0]) / "templates" / "swagger"

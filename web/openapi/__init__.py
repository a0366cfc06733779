"""The OpenAPI document, derived from routes, docstrings and models, and the page that shows it."""

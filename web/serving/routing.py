"""Finds the view of a request as werkzeug does, and caches the results that many requests share."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from werkzeug.routing import Map, MapAdapter, Rule

# Only routes without a variable part, each with and without its trailing slash, so its size is bounded.
_rule_cache: Final[dict[tuple[Map, str, str], Rule]] = {}


class _Adapter(MapAdapter):
    """Caches the rules of paths that have no variable part."""

    def match(
        self, path_info: str | None = None, method: str | None = None, *arguments: Any, **options: Any
    ) -> tuple[Any, Mapping[str, Any]]:
        """Returns the rule and the values of its variable parts, as werkzeug does."""
        if path_info is not None or method is not None:  # the caller asks about another path or method
            return super().match(path_info, method, *arguments, **options)
        route_key = (self.map, self.default_method, self.path_info)
        if rule := _rule_cache.get(route_key):
            return rule, {}
        rule, values = super().match(path_info, method, *arguments, **options)
        if not values and self.path_info.rstrip("/") == rule.rule.rstrip("/"):
            _rule_cache[route_key] = rule
        return rule, values


def adapt(url_map: Map, host: str, environ: Mapping[str, Any]) -> MapAdapter:
    """Returns the adapter that matches a request to its view. Raises werkzeug's error if the host is invalid."""
    base = _of_host(url_map, host, environ["wsgi.url_scheme"])
    path = environ["PATH_INFO"].encode("latin-1").decode(errors="replace")
    method, query = environ["REQUEST_METHOD"], environ["QUERY_STRING"]
    return _Adapter(url_map, base.server_name, base.script_name, base.subdomain, base.url_scheme, path, method, query)


@lru_cache(256)
def _of_host(url_map: Map, host: str, scheme: str) -> MapAdapter:
    environ = {"HTTP_HOST": host, "wsgi.url_scheme": scheme, "REQUEST_METHOD": "GET", "PATH_INFO": "/"}
    return url_map.bind_to_environ(environ, subdomain=url_map.default_subdomain or "")

"""``GET /docs``: the OpenAPI schema as a page without scripts. ``GET /``: where to go from here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import HTMLResponse

_CODE = re.compile(r"``(.+?)``")
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}"
    "h2{margin-top:2.5rem;border-top:1px solid #d0d7de;padding-top:1rem}code{background:#f2f4f7;padding:.1em .3em}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.25rem .5rem;vertical-align:top;"
    "border-bottom:1px solid #e5e8ec}"
)


def routes(app: FastAPI, *, has_console: bool) -> APIRouter:
    """Return the routes of the pages of ``app``. ``has_console`` says whether the console is served beside it."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def docs() -> HTMLResponse:
        return HTMLResponse("".join(_page(app.openapi())))

    @router.get("/")
    async def start() -> HTMLResponse:
        return HTMLResponse("".join(_start(has_console)))

    return router


def _head(title: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        '<meta name="viewport" content="width=device-width"></head><body><main>'
    )


def _start(has_console: bool) -> Iterator[str]:
    yield _head("rewardloop") + "<h1>rewardloop</h1><ul>"
    if has_console:
        yield "<li><a href='/console/'>Console</a>: label, watch, compare, decide, people</li>"
    yield "<li><a href='/docs'>API</a>: every route and field</li>"
    yield "<li><a href='/healthz'>Health</a>: whether the services take requests</li></ul></main></body></html>"


def _page(schema: dict[str, Any]) -> Iterator[str]:
    shapes: dict[str, Any] = schema["components"]["schemas"]
    yield _head("rewardloop over HTTP")
    yield "<h1>rewardloop over HTTP</h1>"
    yield f"<p>{_prose(schema['info']['description'])}</p>"
    yield "<p><a href='/'>Start</a>, <a href='/openapi.json'>the schema as JSON</a></p>"
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{_prose(about.get('description', ''))}</p>"
            body = about.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            for name in _named(body):
                yield from _table(name, shapes[name])
    yield "</main></body></html>"


def _prose(text: str) -> str:
    """Return the text of a docstring as HTML: what stands between double backticks is code."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _default(about: dict[str, Any]) -> str:
    """Return what a field is if it is left out, unless that is nothing."""
    default = about.get("default")
    if default in (None, "", [], {}):
        return ""
    return f" Default: <code>{escape(json.dumps(default))}</code>"


def _named(schema: dict[str, Any]) -> list[str]:
    """Return the names of the shapes that a schema refers to at its top."""
    options = schema.get("oneOf", schema.get("anyOf", [schema]))
    return [each["$ref"].rpartition("/")[2] for each in options if "$ref" in each]


def _table(name: str, shape: dict[str, Any]) -> Iterator[str]:
    required = shape.get("required", ())
    yield f"<h3>{escape(name)}</h3><p>{_prose(shape.get('description', ''))}</p>"
    yield "<table><thead><tr><th>field</th><th>type</th><th></th></tr></thead><tbody>"
    for field, about in shape.get("properties", {}).items():
        needed = " (required)" if field in required else ""
        yield f"<tr><td><code>{escape(field)}</code>{needed}</td><td>{escape(_type(about))}</td>"
        yield f"<td>{_prose(about.get('description', ''))}{_default(about)}</td></tr>"
    yield "</tbody></table>"


def _type(about: dict[str, Any]) -> str:
    for key in ("anyOf", "oneOf"):
        if key in about:
            return " or ".join(_type(each) for each in about[key] if each.get("type") != "null")
    if "enum" in about:
        return ", ".join(str(value) for value in about["enum"])
    if "const" in about:
        return str(about["const"])
    if "$ref" in about:
        return str(about["$ref"]).rpartition("/")[2]
    if about.get("type") == "array":
        return f"list of {_type(about.get('items', {}))}"
    return str(about.get("type", "JSON"))

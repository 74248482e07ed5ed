"""``GET /docs``: the OpenAPI schema as a page without scripts, and ``GET /``, which leads to it."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import HTMLResponse, RedirectResponse

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}"
    "h2{margin-top:2.5rem;border-top:1px solid #d0d7de;padding-top:1rem}code{background:#f2f4f7;padding:.1em .3em}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.25rem .5rem;vertical-align:top;"
    "border-bottom:1px solid #e5e8ec}"
)


def routes(app: FastAPI) -> APIRouter:
    """Return the routes of the page of ``app``."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def docs() -> HTMLResponse:
        return HTMLResponse("".join(_page(app.openapi())))

    @router.get("/")
    async def start() -> RedirectResponse:
        return RedirectResponse("/docs")

    return router


def _page(schema: dict[str, Any]) -> Iterator[str]:
    shapes: dict[str, Any] = schema["components"]["schemas"]
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>rewardloop over HTTP</title>'
    yield f'<style>{_STYLE}</style><meta name="viewport" content="width=device-width"></head><body><main>'
    yield "<h1>rewardloop over HTTP</h1>"
    yield f"<p>{escape(schema['info']['description'])}</p><p><a href='/openapi.json'>The schema as JSON</a></p>"
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(about.get('description', ''))}</p>"
            body = about.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            for name in _named(body):
                yield from _table(name, shapes[name])
    yield "</main></body></html>"


def _named(schema: dict[str, Any]) -> list[str]:
    """Return the names of the shapes that a schema refers to at its top."""
    options = schema.get("oneOf", schema.get("anyOf", [schema]))
    return [each["$ref"].rpartition("/")[2] for each in options if "$ref" in each]


def _table(name: str, shape: dict[str, Any]) -> Iterator[str]:
    required = shape.get("required", ())
    yield f"<h3>{escape(name)}</h3><p>{escape(shape.get('description', ''))}</p>"
    yield "<table><thead><tr><th>field</th><th>type</th><th></th></tr></thead><tbody>"
    for field, about in shape.get("properties", {}).items():
        needed = " (required)" if field in required else ""
        yield f"<tr><td><code>{escape(field)}</code>{needed}</td><td>{escape(_type(about))}</td>"
        yield f"<td>{escape(about.get('description', ''))}</td></tr>"
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

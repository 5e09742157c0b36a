"""Page of the endpoints at /docs: plain HTML of the OpenAPI description, which loads nothing from anywhere."""

from __future__ import annotations

from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h2 code { background: #eef; padding: .1em .4em; border-radius: .3em; } table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; padding: .3rem .6rem .3rem 0; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; }
"""
_EXAMPLES = {
    "/v1/caption": "curl HOST/v1/caption -F file=@picture.png -F file=@sound.wav -F beams=3",
    "/v1/understand": "curl HOST/v1/understand -F file=@order.wav -F schema=slurp",
    "/v1/detect": "curl HOST/v1/detect -F file=@order.wav",
    "/v1/models": "curl HOST/v1/models",
    "/readyz": "curl -i HOST/readyz",
}


def page(description: dict[str, Any]) -> str:
    """HTML page of an OpenAPI ``description``."""
    info = description["info"]
    parts = [
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info.get('description', ''))} ",
        'The same for programs: <a href="openapi.json">openapi.json</a>.</p>',
    ]
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(path, method, operation))
    head = f"<meta charset=utf-8><title>{escape(info['title'])}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>"


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation.get('summary', ''))}</p>"]
    if path in _EXAMPLES:
        parts.append(f"<pre>{escape(_EXAMPLES[path])}</pre>")
    content = operation.get("requestBody", {}).get("content", {})
    if fields := content.get("application/json", {}).get("schema", {}).get("properties"):
        rows = "".join(_row(name, field) for name, field in fields.items())
        parts.append(f"<table><tr><th>field<th>type<th>meaning</tr>{rows}</table>")
        parts.append(f"<p>Content types: {escape(', '.join(content))}</p>")
    return "".join(parts)


def _row(name: str, field: dict[str, Any]) -> str:
    default = f" (default {field['default']!r})" if field.get("default") not in (None, []) else ""
    text = escape(field.get("description", "") + default)
    return f"<tr><td><code>{escape(name)}</code><td>{escape(_type(field))}<td>{text}</tr>"


def _type(field: dict[str, Any]) -> str:
    kinds = [_type(each) for each in field.get("anyOf", []) if each.get("type") != "null"]
    return " or ".join(dict.fromkeys(kinds)) if kinds else str(field.get("type", field.get("title", "object")))

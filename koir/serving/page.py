"""/docs: every route and what its request may hold, as one plain page that loads nothing from anywhere."""

from html import escape

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "td,th{text-align:left;vertical-align:top;padding:.1em 1em .1em 0}h2{margin-top:2em}"
)


def page(openapi: dict) -> str:
    """OpenAPI, as `FastAPI.openapi()` gives it, as HTML."""
    schemas, parts = openapi.get("components", {}).get("schemas", {}), []
    for path, methods in openapi["paths"].items():
        for method, route in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(route.get('description', ''))}</p>")
            body = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            parts += [_table(schemas[name]) for name in _named(body)]
    info = openapi["info"]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(info["title"])}</title>'
        f"<style>{STYLE}</style><h1>{escape(info['title'])}</h1><p>{escape(info.get('summary', ''))}</p>"
        '<p>For programs: <a href="/openapi.json">/openapi.json</a></p>' + "\n".join(parts) + "</html>"
    )


def _named(schema: dict) -> list[str]:
    """The schemas that a body may follow, by name."""
    either = schema.get("oneOf") or schema.get("anyOf") or [schema]
    return [one["$ref"].rsplit("/", 1)[-1] for one in either if "$ref" in one]


def _table(schema: dict) -> str:
    """A schema's fields as rows: name, type, default, what it is for."""
    rows = []
    for name, field in schema.get("properties", {}).items():
        default = "needed" if name in schema.get("required", []) else str(field.get("default", ""))
        cells = [f"<code>{escape(name)}</code>", escape(_kind(field)), escape(default)]
        cells.append(escape(field.get("description", "")))
        rows.append("<tr><td>" + "</td><td>".join(cells) + "</td></tr>")
    head = "<tr><th>field</th><th>type</th><th>default</th><th></th></tr>"
    return f"<p>{escape(schema.get('description', ''))}</p><table>{head}{''.join(rows)}</table>"


def _kind(field: dict) -> str:
    """A field's type in a few words."""
    if "$ref" in field:
        return "object"
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(one) for one in field["anyOf"]))
    if "enum" in field:
        return " or ".join(map(str, field["enum"]))
    kind = str(field.get("type", "any"))
    return f"list of {_kind(field['items'])}" if kind == "array" and "items" in field else kind

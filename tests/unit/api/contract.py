"""Requests whose answers must be what spec/openapi.json says.

Checks the part of JSON Schema that our schemas use; an unknown keyword is an error.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hutch.errors import HutchError
from hutch.sdk.aio.transport import Transport

SPEC: dict[str, Any] = json.loads(
    (Path(__file__).resolve().parents[3] / "spec/openapi.json").read_text("utf-8")
)
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_WORDS = {"title", "description", "default", "const", "enum", "type", "anyOf", "$ref"}
_WORDS |= {"properties", "required", "items", "additionalProperties"}


def conforms(value: Any, schema: dict[str, Any], at: str = "$") -> list[str]:
    """Return what of `value` is not as `schema` says."""
    unknown = set(schema) - _WORDS
    assert not unknown, f"{at}: this test does not know {unknown}"
    if "$ref" in schema:
        return conforms(value, SPEC["components"]["schemas"][schema["$ref"].split("/")[-1]], at)
    if "anyOf" in schema:
        problems = [conforms(value, option, at) for option in schema["anyOf"]]
        return [] if any(not found for found in problems) else problems[0]
    kind = schema.get("type")
    wrong_bool = isinstance(value, bool) and kind in ("integer", "number")
    if kind and (not isinstance(value, _TYPES[kind]) or wrong_bool):
        return [f"{at}: {value!r} is no {kind}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{at}: {value!r} is none of {schema['enum']}"]
    problems_in: list[str] = []
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        problems_in += [f"{at}.{name} is missing" for name in set(properties) - set(value)]
        extra = schema.get("additionalProperties", not properties)
        for name, item in value.items():
            if name in properties:
                problems_in += conforms(item, properties[name], f"{at}.{name}")
            elif isinstance(extra, dict):
                problems_in += conforms(item, extra, f"{at}.{name}")
            elif not extra:
                problems_in.append(f"{at}.{name} is not in the schema")
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            problems_in += conforms(item, schema["items"], f"{at}[{index}]")
    return problems_in


def operation(method: str, path: str) -> dict[str, Any]:
    """Return the specification's entry for a request."""
    for template, methods in SPEC["paths"].items():
        pattern = re.sub(r"\{\w+\}", "[^/]+", template)
        if re.fullmatch(pattern, path) and method.lower() in methods:
            entry: dict[str, Any] = methods[method.lower()]
            return entry
    raise AssertionError(f"{method} {path} is not in spec/openapi.json")


async def ask(
    api: str,
    method: str,
    path: str,
    query: dict[str, Any] | None = None,
    *,
    json: Any = None,
    status: int = 200,
) -> Any:
    """Send a request and return its JSON, after a check of status and body."""
    entry = operation(method, path)
    transport = Transport(socket=api)
    try:
        answer = await transport.request(method, path, query, json=json)
        body = await answer.json()
    finally:
        await transport.close()
    assert answer.status == status
    described = entry["responses"][str(status)]
    if "content" not in described:
        assert body is None
        return None
    schema = described["content"]["application/json"]["schema"]
    assert conforms(body, schema) == []
    return body


async def refused(
    api: str, method: str, path: str, query: dict[str, Any] | None = None, *, json: Any = None
) -> HutchError:
    """Send a request and return the error that it gets."""
    with pytest.raises(HutchError) as caught:
        await ask(api, method, path, query, json=json)
    schema = SPEC["components"]["schemas"]["ErrorDetail"]
    assert conforms(caught.value.to_json(), schema) == []
    return caught.value

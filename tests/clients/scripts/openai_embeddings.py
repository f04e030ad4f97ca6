"""The openai package: embeddings, which it asks for as base64 unless told otherwise."""

from __future__ import annotations

import base64
import struct
from typing import Any

import cases
from openai import OpenAI
from openai.types import CreateEmbeddingResponse

TEXTS = ["The fox ran.", "A king and his daughter."]


def embeddings(url: str) -> dict[str, Any]:
    client = OpenAI(base_url=f"{url}/v1")
    default = client.embeddings.create(model="octavo", input=TEXTS)
    raw = client.embeddings.with_raw_response.create(
        model="octavo", input=TEXTS, encoding_format="float"
    )
    floats = CreateEmbeddingResponse.model_validate_json(raw.text)
    encoded = client.embeddings.with_raw_response.create(
        model="octavo", input=TEXTS, encoding_format="base64"
    ).http_response.json()
    data = [base64.b64decode(entry["embedding"]) for entry in encoded["data"]]
    ids = client.embeddings.create(
        model="octavo", input=[[20, 21, 22], [23, 24]], encoding_format="float"
    )
    return {
        "default": [entry.embedding for entry in default.data],
        "floats": [entry.embedding for entry in floats.data],
        "base64": [struct.unpack(f"<{len(part) // 4}f", part) for part in data],
        "indexes": [entry.index for entry in default.data],
        "usage": default.usage.model_dump(),
        "ids": [len(entry.embedding) for entry in ids.data],
        "ids_usage": ids.usage.model_dump(),
    }


if __name__ == "__main__":
    cases.run(embeddings)

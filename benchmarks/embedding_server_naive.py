"""Servers as one writes them at first: FastAPI around a constant, or around ONNX Runtime.

They run in the environment of the peers, which has FastAPI, on uvloop and httptools:
`python -m benchmarks.embedding_server_naive constant|onnxruntime PORT FOLDER THREADS`.
"""

import base64
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

_DIMENSION = 384


class Query(BaseModel):
    model: str
    input: str
    encoding_format: Literal["float", "base64"] = "float"


class Row(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int = 0
    embedding: str


class TokenUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Reply(BaseModel):
    object: Literal["list"] = "list"
    data: list[Row]
    model: str
    usage: TokenUsage


def _reply(model: str, vector: bytes, tokens: int) -> Reply:
    row = Row(embedding=base64.b64encode(vector).decode())
    return Reply(
        data=[row], model=model, usage=TokenUsage(prompt_tokens=tokens, total_tokens=tokens)
    )


def constant() -> FastAPI:
    """Return an application whose every text has the same vector."""
    app = _app()
    vector = np.full(_DIMENSION, _DIMENSION**-0.5, np.float32).tobytes()

    @app.post("/v1/embeddings")
    async def embed(query: Query) -> Reply:
        return _reply(query.model, vector, len(query.input.split()))

    return app


def on_onnxruntime(folder: Path, threads: int) -> FastAPI:
    """Return an application that runs the model once for each request, on FastAPI's own threads."""
    app = _app()
    run = _model(folder, threads)

    @app.post("/v1/embeddings")
    def embed(query: Query) -> Reply:
        return _reply(query.model, *run(query.input))

    return app


def _app() -> FastAPI:
    app = FastAPI()

    @app.get("/health")
    async def health() -> str:
        return "ok"

    return app


def _model(folder: Path, threads: int) -> Callable[[str], tuple[bytes, int]]:
    import onnxruntime  # noqa: PLC0415 - the constant does not need it
    from tokenizers import Tokenizer  # noqa: PLC0415

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(folder / "pooled.onnx"), options, providers=["CPUExecutionProvider"]
    )

    def run(text: str) -> tuple[bytes, int]:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        (vectors,) = session.run(["sentence_embedding"], feeds)
        unit = vectors[0] / np.linalg.norm(vectors[0])
        return unit.astype(np.float32).tobytes(), ids.size

    return run


def main(kind: str, port: str, folder: str, threads: str) -> None:
    app = constant() if kind == "constant" else on_onnxruntime(Path(folder), int(threads))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])

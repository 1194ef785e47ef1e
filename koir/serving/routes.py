"""The routes of rerank, score, embeddings, search and models, each in the shape of its original."""

import asyncio
import base64
import json
import time
import uuid
from collections.abc import Sequence

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from koir.retrieval.score_maps import sigmoid
from koir.serving import schemas
from koir.serving.models import Answer, Limits, ServedEncoder, ServedReranker
from koir.serving.problems import Problem, invalid
from koir.serving.search import ServedPipeline

router = APIRouter()
TOP_N = 10  # documents of a search that does not say
ROWS = 64  # embeddings written as JSON before other requests get their turn
MOST_TEXTS = 8192  # of one request; an answer of 1,024 numbers each takes 180 MB, and several times that to write


def _json(content: object, truncated: int = 0) -> Response:
    headers = {"X-Truncated-Texts": str(truncated)} if truncated else None
    body = content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    return Response(body, media_type="application/json", headers=headers)


def _note(request: Request, model: str, texts: int, answer: Answer | None = None) -> None:
    request.scope["koir"] |= {"model": model, "texts": texts}
    if answer is not None:
        request.scope["koir"] |= {"tokens": answer.tokens, "truncated": answer.cut}


def _usage(tokens: int) -> dict:
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _too_long(query: bool, which: Sequence[int | str], named: str) -> list[str]:
    """What was cut in words: the query, and documents by what they are called."""
    said = ["the query was too long and was cut"] if query else []
    if which:
        shown = ", ".join(map(str, which[:20])) + (", ..." if len(which) > 20 else "")
        said.append(f"{len(which)} documents were too long and were cut, by {named}: {shown}")
    return said


def _order(logits: np.ndarray, top_n: int | None) -> list[int]:
    """Positions by float32 logit, best first, equal ones in the order of the request."""
    return np.argsort(-logits, kind="stable")[: min(top_n or len(logits), len(logits))].tolist()


def _text(position: int, document: schemas.Document, fields: Sequence[str] | None) -> str:
    """A document's text as it was sent; of an object its fields, with spaces between them."""
    if isinstance(document, str):
        return document
    there = {"text": document.text} | (document.model_extra or {})
    values = [there.get(name) for name in fields or ["text"]]
    if not all(isinstance(value, (str, int, float)) for value in values):
        named = ", ".join(fields or ["text"])[:80].encode("utf-8", "replace").decode()
        raise invalid(f"documents.{position}", "no text under its fields", f"a text, or an object with {named}")
    text = " ".join(map(str, values))
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise invalid(f"documents.{position}", "half of a surrogate pair", "valid Unicode")
    return text


async def _rerank(request: Request, body: schemas.RerankRequest, plain_text: bool = False) -> Response:
    reranker = request.app.state.registry.find("reranker", body.model)
    texts = [_text(i, document, body.rank_fields) for i, document in enumerate(body.documents)]
    _note(request, reranker.name, len(texts))
    limits = Limits(
        body.truncate_prompt_tokens, body.max_tokens_per_query, body.max_tokens_per_doc, side=body.truncation_side
    )
    answer = await reranker.score([(body.query, schemas.composed(text)) for text in texts], limits)
    _note(request, reranker.name, len(texts), answer)
    scores = (answer.rows if body.raw else request.app.state.score_map(answer.rows)).tolist()
    wanted = request.app.state.return_documents if body.return_documents is None else body.return_documents
    results = []
    for i in _order(answer.rows, body.top_n):
        results.append({"index": i, "relevance_score": scores[i]})
        if wanted:
            results[-1]["document"] = texts[i] if plain_text else {"text": texts[i]}
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
    meta["tokens"] = {"input_tokens": answer.tokens, "output_tokens": 0}
    if warnings := _too_long(answer.cut_queries > 0, answer.truncated, "index"):
        meta["warnings"] = warnings
    content = {"id": f"rerank-{uuid.uuid4().hex}", "object": "rerank", "created": int(time.time())}
    content |= {"model": reranker.name, "results": results, "usage": _usage(answer.tokens), "meta": meta}
    return _json(content, answer.cut)


async def _rerank_tei(request: Request, body: schemas.TeiRerankRequest) -> Response:
    reranker = request.app.state.registry.find("reranker", body.model)
    limits = Limits(cut=body.truncate is not False, side=(body.truncation_direction or "right").lower())
    _note(request, reranker.name, len(body.texts))
    answer = await reranker.score([(body.query, schemas.composed(text)) for text in body.texts], limits)
    _note(request, reranker.name, len(body.texts), answer)
    scores = (answer.rows if body.raw_scores else request.app.state.score_map(answer.rows)).tolist()
    results = [{"index": i, "score": scores[i]} for i in _order(answer.rows, body.top_n)]
    if body.return_text:
        results = [result | {"text": body.texts[result["index"]]} for result in results]
    return _json(results, answer.cut)


def _described(answer: object, tag: str) -> dict:
    """What OpenAPI says of a route on which a model computes."""
    answers = {200: {"model": answer}, 503: {"model": schemas.ErrorBody}}
    return {"response_model": None, "responses": answers, "tags": [tag]}


RERANKED, SCORED = _described(schemas.RerankAnswer, "rerank"), _described(schemas.ListAnswer, "rerank")
EMBEDDED = _described(schemas.ListAnswer, "embeddings")
LISTED = {"response_model": None, "responses": {200: {"model": schemas.ListAnswer}}, "tags": ["server"]}


@router.post("/rerank", **_described(schemas.RerankAnswer | list[schemas.TeiFound], "rerank"))
async def rerank(request: Request, body: schemas.AnyRerankRequest) -> Response:
    """vLLM's shape (top_n 0: all), or TEI's bare list when `texts` is sent in place of `documents`."""
    if isinstance(body, schemas.TeiRerankRequest):
        return await _rerank_tei(request, body)
    return await _rerank(request, body)


@router.post("/v1/rerank", **RERANKED)
async def rerank_v1(request: Request, body: schemas.RerankRequest) -> Response:
    """Jina's, Cohere v1's and LocalAI's shape."""
    return await _rerank(request, body)


@router.post("/v2/rerank", **RERANKED)
async def rerank_v2(request: Request, body: schemas.RerankRequest) -> Response:
    """Cohere v2's shape."""
    return await _rerank(request, body)


@router.post("/infinity/rerank", **RERANKED)
async def rerank_infinity(request: Request, body: schemas.RerankRequest) -> Response:
    """Infinity's shape: `document` is the bare text, as its client and LiteLLM's `infinity/` expect."""
    return await _rerank(request, body, plain_text=True)


@router.post("/score", **SCORED)
@router.post("/v1/score", **SCORED)
async def score(request: Request, body: schemas.ScoreRequest) -> Response:
    """vLLM's score: one number a pair, in the order of the request."""
    reranker = request.app.state.registry.find("reranker", body.model)
    _note(request, reranker.name, len(body.pairs))
    answer = await reranker.score(body.pairs, Limits(body.truncate_prompt_tokens, side=body.truncation_side))
    _note(request, reranker.name, len(body.pairs), answer)
    scores = answer.rows if body.use_activation is False else sigmoid(answer.rows)
    data = [{"index": i, "object": "score", "score": s} for i, s in enumerate(scores.tolist())]
    content = {"id": f"score-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}
    content |= {"model": reranker.name, "data": data, "usage": _usage(answer.tokens)}
    return _json(content, answer.cut)


@router.post("/v1/embeddings", **EMBEDDED)
@router.post("/embeddings", **EMBEDDED)
async def embeddings(request: Request, body: schemas.EmbeddingRequest) -> Response:
    """OpenAI's shape: unit vectors as floats or as base64 of little-endian float32."""
    encoder, inputs = request.app.state.registry.find("encoder", body.model), body.inputs
    size, most = encoder.model.dimensions, len(encoder.model.tokenizer)
    if len(inputs) > MOST_TEXTS:
        raise invalid("input", f"{len(inputs):,} texts", f"at most {MOST_TEXTS:,} in one request")
    if body.dimensions and body.dimensions > size:
        raise invalid("dimensions", str(body.dimensions)[:20], f"at most {size}")
    if not isinstance(inputs[0], str) and any(token >= most for ids in inputs for token in ids):
        raise invalid("input", "an unknown token id", f"ids below {most:,}, of the model's own tokenizer")
    _note(request, encoder.name, len(inputs))
    answer = await encoder.embed(inputs, body.prompt, Limits(body.truncate_prompt_tokens, side=body.truncation_side))
    _note(request, encoder.name, len(inputs), answer)
    rows = answer.rows[:, : body.dimensions]  # [n, d]
    if body.dimensions:
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    parts = [await _rows(rows, start, body.encoding_format) for start in range(0, len(rows), ROWS)]
    rest = {"object": "list", "model": encoder.name, "usage": _usage(answer.tokens)}
    if answer.truncated:
        rest["truncated"] = answer.truncated
    return _json(b'{"data":[' + b",".join(parts) + b"]," + json.dumps(rest).encode()[1:], answer.cut)


async def _rows(rows: np.ndarray, start: int, encoding: str | None) -> bytes:
    """Some of the embeddings as JSON; in between, the loop serves others."""
    await asyncio.sleep(0)
    found = []
    for i, row in enumerate(rows[start : start + ROWS], start):
        vector = base64.b64encode(row.astype("<f4").tobytes()).decode() if encoding == "base64" else row.tolist()
        found.append(json.dumps({"object": "embedding", "index": i, "embedding": vector}))
    return ",".join(found).encode()


@router.post("/v1/search", **_described(schemas.SearchAnswer, "search"))
async def search(request: Request, body: schemas.SearchRequest) -> Response:
    """The whole pipeline in one call: candidates of the first stage, ordered by the reranker."""
    pipeline = request.app.state.registry.find("pipeline", body.model)
    _note(request, pipeline.name, 1)
    found = await pipeline.search(body.query, body.top_n or TOP_N, body.depth, body.rerank is not False)
    truncated = len(found.cut) + found.cut_query
    request.scope["koir"] |= {"texts": found.texts, "tokens": found.tokens, "truncated": truncated}
    results = []
    for hit in found.hits:
        results.append({"id": hit.id, "relevance_score": hit.score, "first_stage_score": hit.first_stage_score})
        if body.return_documents is not False:
            results[-1]["document"] = {"text": hit.text}
    content = {"id": f"search-{uuid.uuid4().hex}", "object": "search", "model": pipeline.name, "results": results}
    content |= {"usage": _usage(found.tokens), "milliseconds": found.milliseconds}
    if truncated:
        content["meta"] = {"warnings": _too_long(found.cut_query, found.cut, "id")}
    return _json(content, truncated)


@router.head("/v1/models", include_in_schema=False)
@router.get("/v1/models", **LISTED)
@router.get("/models", **LISTED)
async def models(request: Request) -> Response:
    """What is served, by name; open without a key, since mteb asks without one."""
    return _json({"object": "list", "data": [_model(served) for served in request.app.state.registry.all]})


@router.get("/v1/models/{name:path}", response_model=None, tags=["server"])
async def model(request: Request, name: str) -> Response:
    """One of them."""
    found = next((served for served in request.app.state.registry.all if served.name == name), None)
    if found is None:
        raise Problem(404, "model: found none of that name; /v1/models lists them", "model_not_found", "model")
    return _json(_model(found))


def _model(served: ServedEncoder | ServedReranker | ServedPipeline) -> dict:
    facts = {"id": served.name, "object": "model", "created": served.created, "owned_by": "koir", "kind": served.kind}
    return facts | ({"max_model_len": served.max_seq_length} if served.max_seq_length else {})

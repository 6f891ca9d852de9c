"""Answers HTTP requests: predictions, a description of the model, health and metrics."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from exfm.errors import ConfigError
from exfm.serving.http.metrics import Metrics
from exfm.serving.http.prediction_log import PredictionLog
from exfm.serving.http.refusal import RefusedError
from exfm.serving.http.service import Answer, Row, Service

logger = logging.getLogger(__name__)

_ALL_THERE_IS = "There are POST /predict, POST /predict_request, GET /, GET /health, GET /metrics and GET /openapi.json"


@dataclass(frozen=True)
class Limits:
    """Limits the requests of clients.

    Attributes:
        rows: of a request.
        bytes: of a request's body.
        requests: at once.
        seconds: in which a request's body must have arrived.
    """

    rows: int = 10_000
    bytes: int = 10_000_000
    requests: int = 256
    seconds: float = 10.0


@dataclass(frozen=True)
class Question:
    """Holds the content of a request.

    Attributes:
        rows: rows, or candidates.
        context: the columns that candidates have in common; None of rows.
    """

    rows: list[Row]
    context: Row | None = None


def build_app(service: Service, metrics: Metrics, limits: Limits, log: PredictionLog | None = None) -> FastAPI:
    """Builds the application.

    Args:
        service: predicts; it is started and stopped with the application.
        metrics: the content of `/metrics`.
        log: gets the rows and their predictions.
    """

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        if log is not None:
            log.start()
        yield
        # First the service, so that the last answers are logged too.
        service.stop()
        if log is not None:
            log.stop()

    # Without the pages of documentation, which load scripts from elsewhere; /openapi.json stays.
    app = FastAPI(title="exfm", lifespan=run, docs_url=None, redoc_url=None)

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> JSONResponse:
        """Answers requests for what there is not."""
        return JSONResponse({"error": f"{error.detail}. {_ALL_THERE_IS}"}, error.status_code, error.headers)

    @app.get("/")
    def describe() -> Any:
        """Describes the model, its snapshot, the columns of a row and the predictions."""
        shown = {"experiment", "model", "snapshot", "watermark", "columns", "outputs"}
        return service.description.model_dump(mode="json", include=shown)

    @app.get("/health")
    def health() -> JSONResponse:
        """Tells whether requests are answered, with which snapshot, and why newer weights were not taken over."""
        state = {"snapshot": service.description.snapshot, "refresh_error": service.refresh_error}
        return JSONResponse(state, 200 if service.is_alive else 503)

    @app.get("/metrics")
    def read_metrics() -> Response:
        """Returns the metrics in the text format of Prometheus."""
        return Response(metrics.text(), media_type=metrics.media_type)

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        """Predicts rows: {"rows": [{column: value, ...}, ...]}."""
        return await answer(request, _rows)

    @app.post("/predict_request")
    async def predict_request(request: Request) -> JSONResponse:
        """Predicts candidates: {"context": {column: value, ...}, "candidates": [{column: value, ...}, ...]}."""
        return await answer(request, _candidates)

    async def answer(request: Request, parse: Callable[[Any, Limits], Question]) -> JSONResponse:
        began_s = time.perf_counter()
        try:
            with metrics.running(limits.requests):
                content = await _predict(parse(_content(await _body(request, limits)), limits))
            status = 200
        except RefusedError as error:
            status, content = error.status, {"error": str(error)}
        metrics.answered(status, time.perf_counter() - began_s)
        # Unread bytes of a body would be taken for the next request.
        headers = {"Connection": "close"} if status in (408, 413, 503) else None
        return JSONResponse(content, status, headers)

    async def _predict(question: Question) -> dict[str, Any]:
        try:
            answer = await asyncio.wrap_future(service.submit(question.rows, question.context))
        except ConfigError as error:
            raise RefusedError(400, str(error)) from error
        except Exception as error:  # the model's, of whatever type; the cause is for whoever runs the service
            logger.exception("the prediction of a request failed")
            raise RefusedError(500, "the prediction failed") from error
        described = service.description
        content = {"model": described.model, "snapshot": answer.snapshot, "predictions": _by_row(answer)}
        if log is not None:
            # In a thread, because the rows of a large request take long to convert.
            content["example_ids"] = await asyncio.to_thread(log.add, question.rows, answer)
        return content

    return app


async def _body(request: Request, limits: Limits) -> bytes:
    """Reads a request's body, within the limits."""
    too_large = RefusedError(413, f"send at most {limits.bytes:,} bytes")
    # The server has checked that it is a number.
    if int(request.headers.get("content-length", 0)) > limits.bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > limits.bytes:
                    raise too_large
    except TimeoutError as error:
        raise RefusedError(408, f"the body must arrive within {limits.seconds:g} seconds") from error
    return bytes(body)


def _content(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the body is not JSON: {error}") from error


def _rows(content: Any, limits: Limits) -> Question:
    rows = content.get("rows") if isinstance(content, dict) else None
    if not _are_rows(rows):
        raise RefusedError(400, 'send {"rows": [{"column": value, ...}, ...]}')
    return Question(_limited(rows, limits))


def _candidates(content: Any, limits: Limits) -> Question:
    context = content.get("context") if isinstance(content, dict) else None
    candidates = content.get("candidates") if isinstance(content, dict) else None
    if not isinstance(context, dict) or not _are_rows(candidates):
        raise RefusedError(400, 'send {"context": {"column": value, ...}, "candidates": [{"column": value, ...}, ...]}')
    return Question(_limited(candidates, limits), context)


def _are_rows(rows: Any) -> TypeGuard[list[Row]]:
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def _limited(rows: list[Row], limits: Limits) -> list[Row]:
    if len(rows) > limits.rows:
        raise RefusedError(413, f"send at most {limits.rows:,} rows; given: {len(rows):,}")
    return rows


def _by_row(answer: Answer) -> list[dict[str, Any]]:
    """Turns the predictions of tasks into a mapping per row."""
    tasks = list(answer.predictions)
    values = (answer.predictions[task].tolist() for task in tasks)
    return [dict(zip(tasks, row, strict=True)) for row in zip(*values, strict=True)]

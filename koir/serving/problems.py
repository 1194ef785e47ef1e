"""What goes wrong with a request, in the one shape that every client we know can read."""

from collections.abc import Sequence

from koir.errors import nearest
from koir.serving.schemas import SearchRequest


class Problem(Exception):
    """An answer that is an error: HTTP status, message for a person, code for a program, the field it is about.

    It says nothing of the texts that were sent.
    """

    def __init__(self, status: int, message: str, code: str, param: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    def body(self) -> dict:
        """`error` for OpenAI's and Infinity's clients, `detail` for LlamaIndex's, `message` for Cohere's."""
        kind = "server_error" if self.status >= 500 else KINDS.get(self.status, "invalid_request_error")
        error = {"message": self.message, "type": kind, "code": self.code, "param": self.param}
        return {"error": error, "detail": self.message, "message": self.message}


KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def invalid(param: str, found: str, expected: str) -> Problem:
    """422 for a field that is understood but cannot be served."""
    return Problem(422, f"{param}: found {found}; expected {expected}", "invalid_value", param)


def from_validation(errors: Sequence[dict]) -> Problem:
    """The first of pydantic's errors as a Problem: 400 for what is no JSON, else 422. Inputs are never repeated."""
    error = errors[0]
    words = error["msg"].removeprefix("Value error, ")
    if error["type"] == "json_invalid":
        return Problem(400, f"body: found broken JSON ({error['ctx']['error']}); expected one object", "invalid_json")
    ours = ("body", "tei", "vllm")  # no field's name: which of several shapes was tried
    steps = [
        str(step) for step in error["loc"] if step not in ours and not str(step).startswith(("tagged-", "function-"))
    ]
    if not steps and error["type"] == "value_error":
        return Problem(422, f"body: {words}", "value_error", "body")
    if not steps:
        return Problem(422, "body: expected one JSON object, sent as application/json", error["type"], "body")
    param = ".".join(steps[:4])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    said = words
    if error["type"] == "extra_forbidden":  # of a search alone; elsewhere fields of other dialects are left out
        param, known = param[:80], list(SearchRequest.model_fields)
        said = f"found an unknown field; expected {', '.join(known)}{nearest(param, known)}"
    if error["type"] == "too_short" and error["input"] == "":  # pydantic speaks of items
        said = "found an empty text; expected at least one character"
    if steps[0] == "input" and len(errors) > 1:  # one of each way in which it may be given
        param, said, more = "input", "expected a text, texts, or token ids, at least one", ""
    return Problem(422, f"{param}: {said}{more}", error["type"], param)

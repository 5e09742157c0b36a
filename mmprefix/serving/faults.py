"""Faults of a request: the status and the JSON body that OpenAI's clients understand."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from mmprefix.errors import InputError

_KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CLIENT_GONE = 499  # in logs and metrics alone: nobody is left to read an answer


class RequestError(Exception):
    """A request that is refused: HTTP ``status``, one sentence, a short ``code``, the field ``param`` at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """{"error": {"message", "type", "code", "param"}}."""
        return error_body(self.status, str(self), code=self.code, param=self.param)


def error_body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Body of an error in OpenAI's form; half a character in ``message`` is written as an escape."""
    default = "invalid_request_error" if status < 500 else "server_error"
    plain = message.encode(errors="backslashreplace").decode()
    return {"error": {"message": plain, "type": _KINDS.get(status, default), "code": code, "param": param}}


def fault_of(error: BaseException) -> RequestError:
    """The fault that answers ``error``; one that nobody foresaw says nothing of the server's inside."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, InputError):
        return RequestError(400, str(error), code="bad_input")
    return RequestError(500, "the service failed on this request; its log says more", code="internal_error")


def fault_of_form(error: ValidationError) -> RequestError:
    """422 with the first field at fault, and what is wrong with it; nothing that the client sent is in it."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return RequestError(422, f"{place or 'body'}: {first['msg']}", code="bad_form", param=place or None)

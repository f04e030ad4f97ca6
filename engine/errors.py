"""Every error octavo raises on purpose, as one tree.

    OctavoError
    ├── ConfigError                 a setting, a checkpoint or the machine: said once, at start-up
    │   ├── ModelNotFound           no such folder or hub id
    │   ├── UnsupportedArchitecture the checkpoint's architecture has no file in engine/models
    │   ├── BrokenCheckpoint        files are missing, cut short, or in a format we refuse
    │   └── DoesNotFit              memory: states need, have, and the settings that would fit
    ├── RequestError                one request is wrong: the client's to mend, costs nobody else
    │   ├── InvalidParameter        a field is out of its limits
    │   ├── ContextLengthExceeded   prompt + max_tokens is longer than the context
    │   ├── Unsatisfiable           its rules leave no token, or its grammar is too costly to follow
    │   ├── DeadlineExceeded        its time was up before its answer was complete
    │   └── ReaderTooSlow           its client does not read what has been made for it
    └── EngineError                 ours to mend
        ├── EngineDead              the engine process is gone or not yet there
        ├── Draining                the daemon is being shut down and takes nothing new
        ├── Overloaded              too much waits already; says when to come back
        ├── RequestGivenUp          the engine died of this request, again and again
        └── SequenceFailed          one sequence could not be computed; the others go on

A message is one sentence that names the setting, the value, the limit and the way out.
`server/openai/errors.py` has one row per class: its HTTP status and error code.
"""

from __future__ import annotations


class OctavoError(Exception):
    """Base of every error octavo raises on purpose; `str()` of it may be shown to a user."""


class ConfigError(OctavoError):
    """A setting, a checkpoint or the machine does not allow the daemon to start."""


class ModelNotFound(ConfigError):
    """The model path is no folder here and no repository on the hub."""


class UnsupportedArchitecture(ConfigError):
    """`config.json` names an architecture that has no file in `engine/models`."""


class BrokenCheckpoint(ConfigError):
    """A checkpoint's files are missing, cut short, or in a format octavo refuses to read."""


class DoesNotFit(ConfigError):
    """Weights or KV cache need more memory than there is."""


class RequestError(OctavoError):
    """A request is wrong. `param` names the field at fault, or is None for the whole body."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidParameter(RequestError):
    """A field's value is outside its limits."""


class ContextLengthExceeded(RequestError):
    """Prompt and requested output together are longer than the model's context."""


class Unsatisfiable(RequestError):
    """The request's own rules leave no token to generate, or its grammar cannot be followed."""


class DeadlineExceeded(RequestError):
    """The request's time was up before its answer was complete."""

    def __init__(self) -> None:
        super().__init__(
            "The request's time is up; give it a longer timeout, as far as the server's "
            "--request-timeout allows.",
            param="timeout",
        )


class ReaderTooSlow(RequestError):
    """The client of a stream does not read what has been made for it."""


class EngineError(OctavoError):
    """The engine failed; the request was fine."""


class EngineDead(EngineError):
    """The engine process has ended, or has not come up yet."""


class Draining(EngineError):
    """The daemon is being shut down: it takes nothing new, and ends what took too long."""


class Overloaded(EngineError):
    """Too much waits already.

    `retry_after` is in seconds, `reason` a word for the metrics (`observe/metrics.REJECTIONS`).
    """

    def __init__(self, message: str, *, retry_after: float, reason: str) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.reason = reason


class RequestGivenUp(EngineError):
    """The engine died whenever it computed this request; every other request goes on."""


class DeviceLost(BaseException):
    """The device computes nothing any more for this process; another one may.

    No `Exception`: whatever handles the failure of a request, a slice or a step must not catch it.
    It ends the engine's process, and its requests go on in the next.
    """


class SequenceFailed(EngineError):
    """Computing one sequence failed; every other sequence goes on."""

"""An engine is asked what it is, and its answers become a record of what it can do.

Invariants:
- only harmless reads are asked; nothing fails when an answer does not come: what is not known is None;
- a released vLLM is judged by its version, since it takes fields that it does not know without a word; another build, and
  SGLang, by the fields that its own OpenAPI document lists.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from gateway.dialects.captured import label

Kind = Literal["vllm", "sglang", "unknown"]
TokenIn = Literal["kv_transfer_params", "input_ids"]
Version = tuple[int, int]
Ask = Callable[[str], Awaitable["Reply | None"]]
"""GET a path of an engine; None: no answer came."""

FLOOR: Final[Version] = (0, 15)
"""From here on vLLM streams every token id, also of tool calls that its parser holds back."""
TOKEN_IDS: Final[Version] = (0, 11)
TOKEN_IN: Final[Version] = (0, 28)
WEIGHT_VERSIONS: Final[Version] = (0, 33)
MAX_MODELS: Final = 64
_RELEASE: Final = re.compile(r"(\d+)\.(\d+)(?:\.\d+)?(?:rc\d+|\.?post\d+)?(?:\+.*)?")
"""A development build's number says too little: those of a checkout without tags are 0.1.dev…"""
_SGLANG_INFO: Final = ("/model_info", "/get_model_info")
_SGLANG_SERVER: Final = ("/server_info", "/get_server_info")


@dataclass(frozen=True, slots=True)
class Reply:
    """A status and a JSON body; None: it is no JSON."""

    status: int
    body: Any = None

    @property
    def fields(self) -> Mapping[str, Any]:
        """The body of a good answer, if it is an object."""
        return self.body if self.status == 200 and isinstance(self.body, dict) else {}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do; None: not known."""

    kind: Kind = "unknown"
    version: str | None = None
    models: tuple[str, ...] = ()
    token_ids: bool | None = None
    """`return_token_ids` on chat."""
    token_in: TokenIn | None = None
    """The field of a chat request that takes the prompt's token ids."""
    weight_versions: bool | None = None
    """`return_weight_versions` on chat."""
    weight_path: str | None = None
    """Where the engine tells the version of its weights."""
    tokenize: bool | None = None
    warnings: tuple[str, ...] = ()


async def probe(ask: Ask, kind: Literal["auto", "vllm", "sglang"] = "auto") -> Capabilities:
    """What the engine says that it can do."""
    models = _names(await ask("/v1/models"))
    version = None if kind == "sglang" else _text((await _fields(ask, "/version")).get("version"))
    if version is not None or kind == "vllm":
        return await _probe_vllm(ask, version, models)
    for path in _SGLANG_INFO:
        info = await _fields(ask, path)
        if "model_path" in info:
            return await _probe_sglang(ask, path, info, models)
    return Capabilities(kind="unknown" if kind == "auto" else kind, models=models, warnings=(UNKNOWN,))


async def _probe_vllm(ask: Ask, version: str | None, models: tuple[str, ...]) -> Capabilities:
    weights = await _fields(ask, "/weight_info")
    release = read_release(version)
    token_ids: bool | None
    token_in: bool | None
    weight_versions: bool | None
    if release is not None:
        token_ids, token_in, weight_versions = release >= TOKEN_IDS, release >= TOKEN_IN, release >= WEIGHT_VERSIONS
    else:
        known = chat_fields(await ask("/openapi.json"))
        token_ids = None if known is None else "return_token_ids" in known
        # The reuse of ids came in the release that brought session_id; the field that carries them is older.
        token_in = None if known is None else {"kv_transfer_params", "session_id"} <= known
        weight_versions = None if known is None else "return_weight_versions" in known
    return Capabilities(
        kind="vllm",
        version=version,
        models=models,
        token_ids=token_ids,
        token_in="kv_transfer_params" if token_in else None,
        weight_versions=weight_versions,
        weight_path="/weight_info" if "weight_version" in weights else None,
        tokenize=_exists(await ask("/tokenize")),
        warnings=tuple(_warn_vllm(version, release)),
    )


async def _probe_sglang(ask: Ask, path: str, info: Mapping[str, Any], models: tuple[str, ...]) -> Capabilities:
    version = None
    for server in _SGLANG_SERVER:
        version = version or _text((await _fields(ask, server)).get("version"))
    known = chat_fields(await ask("/openapi.json"))
    token_ids = None if known is None else "return_token_ids" in known
    return Capabilities(
        kind="sglang",
        version=version,
        models=models,
        token_ids=token_ids,
        token_in="input_ids" if known is not None and "input_ids" in known else None,
        weight_versions=False,
        weight_path=path if "weight_version" in info else None,
        tokenize=_exists(await ask("/tokenize")),
        warnings=(SGLANG_TOO_OLD,) if token_ids is False else (),
    )


UNKNOWN: Final = "this is neither vLLM nor SGLang, as far as it says: steps are trainable only if it returns token ids"
SGLANG_TOO_OLD: Final = "this SGLang returns no token ids on chat, so no step can be trained: use a newer one"


def _warn_vllm(version: str | None, release: Version | None) -> list[str]:
    if version is None:
        return ["this vLLM does not tell its version: it must be 0.15 or later"]
    if release is None or release >= FLOOR:
        return []
    lost = "loses token ids of streamed tool calls" if release >= TOKEN_IDS else "returns no token ids"
    return [f"vLLM {version} {lost}, so those steps cannot be trained: use 0.15 or later"]


def read_release(version: str | None) -> Version | None:
    """Major and minor number of a release; None for development builds and for what is no version."""
    found = _RELEASE.fullmatch(version or "")
    return (int(found[1]), int(found[2])) if found else None


def chat_fields(document: Reply | None) -> frozenset[str] | None:
    """The fields of a chat request by an OpenAPI document; None: it has none."""
    node: Any = None if document is None else document.fields
    for key in ("components", "schemas", "ChatCompletionRequest", "properties"):
        node = node.get(key) if isinstance(node, Mapping) else None
    return frozenset(node) if isinstance(node, Mapping) else None


def read_weights(reply: Reply | None) -> int | None:
    """The version in the answer of a `weight_path`; None for a label that is no number, as vLLM's `default`."""
    found = None if reply is None else reply.fields.get("weight_version")
    return label(found) if isinstance(found, int | str) and not isinstance(found, bool) else None


def _names(reply: Reply | None) -> tuple[str, ...]:
    data = None if reply is None else reply.fields.get("data")
    entries = data if isinstance(data, list) else []
    names = [_text(entry.get("id")) for entry in entries[:MAX_MODELS] if isinstance(entry, dict)]
    return tuple(name for name in names if name)


async def _fields(ask: Ask, path: str) -> Mapping[str, Any]:
    reply = await ask(path)
    return {} if reply is None else reply.fields


def _exists(reply: Reply | None) -> bool | None:
    """A path that takes only POST answers a GET with 405."""
    return None if reply is None or reply.status >= 500 or reply.status in (401, 403) else reply.status != 404


def _text(value: object) -> str | None:
    return value[:200] if isinstance(value, str) and value else None

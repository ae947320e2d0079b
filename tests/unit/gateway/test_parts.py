"""Media and routed experts are whole or refused; what is neither passes as it is."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from claw_r1.blobs import NPY, blob_ref
from gateway.calls.parts import (
    BYTES,
    JSON,
    Content,
    data_url,
    decode_data_url,
    experts_content,
    experts_ref,
    may_hold_media,
    media_places,
    sniff,
    submitted_media,
)


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue()


EXPERTS = [[[1, 2]], [[3, 300]]]


@given(some.binary(), some.sampled_from(["image/png", "audio/x-wav", "video/mp4"]))
def test_a_data_url_holds_its_bytes(data: bytes, kind: str) -> None:
    assert decode_data_url(data_url(Content(data, kind))) == Content(data, kind)


@pytest.mark.parametrize(
    ("url", "content"),
    [
        ("data:,a%20b", Content(b"a b", "text/plain")),
        ("DATA:image/PNG;charset=x;BASE64,AAAA", Content(b"\0\0\0", "image/png")),
        ("data:image/png;base64,AA%3D%3D", Content(b"\0", "image/png")),
        ("http://x/y", None),
    ],
)
def test_every_form_of_a_data_url(url: str, content: Content | None) -> None:
    assert decode_data_url(url) == content


@pytest.mark.parametrize(
    "url", ["data:image/png;base64,A", "data:x", "data:" + "a" * 600 + ",x", "data:image/png;base64,é"]
)
def test_a_broken_data_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"data:|base64"):
        decode_data_url(url)


def test_where_a_message_names_media() -> None:
    message = {
        "content": [
            {"type": "text", "text": "a"},
            {"type": "image_url", "image_url": {"url": "one", "detail": "low"}},
            {"type": "image_url", "image_url": "two"},
            {"type": "video_url", "video_url": {"url": "three"}},
            {"type": "input_audio", "input_audio": {"data": "four", "format": "mp3"}},
            "text",
        ]
    }
    assert [(place.value, place.form) for place in media_places(message)] == [
        ("one", None),
        ("two", None),
        ("three", None),
        ("four", "mp3"),
    ]
    nothings: list[Any] = [
        {"content": "image_url"},
        {"content": None},
        [],
        "x",
        {"content": [{"input_audio": {"data": 7}}]},
    ]
    for nothing in nothings:
        assert list(media_places(nothing)) == []
    assert not may_hold_media(b'{"content": "an image_url"}')
    assert may_hold_media(b'{"content": [{"image_\\u0075rl": "x"}]}')


def test_what_a_white_box_agent_showed() -> None:
    png = b"\x89PNG\r\n\x1a\n..."
    data = {
        "images": [png, b"??", "data:image/jpeg;base64,AAAA", None],
        "videos": {"frames": [[1, 2]]},
        "note": "text",
    }
    assert submitted_media(data) == [
        Content(png, "image/png"),
        Content(b"??", BYTES),
        Content(b"\0\0\0", "image/jpeg"),
        Content(b'{"videos":{"frames":[[1,2]]}}', JSON),
        Content(b'{"note":"text"}', JSON),
    ]
    with pytest.raises(ValueError, match="images is a URL"):
        submitted_media({"images": "https://example.com/x.png"})
    with pytest.raises(ValueError, match="cannot be stored"):
        submitted_media({"images": {"a": "\ud800"}})


def test_pictures_are_known_by_their_first_bytes() -> None:
    assert [sniff(b"\xff\xd8\xff\xe0"), sniff(b"RIFF1234WEBPVP8 "), sniff(b"GIF89a"), sniff(b"<svg")] == [
        "image/jpeg",
        "image/webp",
        "image/gif",
        None,
    ]


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<i2", "<i8"])
def test_an_array_of_experts_is_kept_byte_for_byte(dtype: str) -> None:
    file = npy(np.zeros((5, 4, 2), dtype))
    for form in (file, base64.b64encode(file).decode()):
        assert experts_content(form) == Content(file, NPY)
        assert experts_ref(form) == (file, blob_ref(file, NPY))


def test_lists_of_experts_become_an_array_of_the_smallest_type() -> None:
    array = np.load(io.BytesIO(experts_content(EXPERTS).data))
    assert (array.tolist(), array.dtype) == (EXPERTS, np.dtype("u2"))
    assert np.load(io.BytesIO(experts_content([[[1]]]).data)).dtype == np.dtype("u1")


@pytest.mark.parametrize(
    "wrong",
    [
        7,
        {"a": 1},
        "!!",
        "AAAA",
        b"",
        npy(np.zeros((2, 2), "u1")),
        npy(np.zeros((2, 2, 2), "f4")),
        npy(np.zeros((2, 2, 2), "u1"))[:-1],
        npy(np.zeros((2, 2, 2), "u1")) + b"x",
        npy(np.zeros((2, 2, 2), "u1"))[:40],
        [[1, 2]],
        [[[1]], [[1], [2]]],
        [[[-1]]],
        [[[0.5]]],
        [[["x"]]],
        [],
    ],
)
def test_what_is_no_array_of_experts_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"experts|base64"):
        experts_content(wrong)


def test_an_array_that_would_run_code_is_refused() -> None:
    file = io.BytesIO()
    np.save(file, np.array([[[{"a": 1}]]], object), allow_pickle=True)
    with pytest.raises(ValueError, match="integers"):
        experts_content(file.getvalue())

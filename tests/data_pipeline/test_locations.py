"""Paths and URLs: which are read, how they are joined, and how messages show them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.remote.dataset_folder import LocalFolder, open_dataset_folder
from data_pipeline.remote.locations import check_location, join_url, show_text, show_url


@pytest.mark.parametrize(
    "url",
    [
        "pipe:touch marker",
        "PIPE:touch marker",
        "exec://touch",
        "ftp://host/x",
        "ssh://host/x",
        "simplecache::http://host/x",
        "zip://x::http://host/a.zip",
        "s3://bucket/x::file:///etc/passwd",
        "github://a:b@c/d",
        "http:host",
        "s3://",
        "file://elsewhere/data",
        "file:data",
        "http://[host/x",
        "reference://x",
        "dask://x",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(DataError) as caught:
        open_dataset_folder(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("data/train", "data/train"),
        ("file:///data/train", "/data/train"),
        (Path("s3:/x"), "s3:/x"),
        ("C:/x", "C:/x"),
    ],
)
def test_paths_are_paths(location: Path | str, path: str) -> None:
    folder = open_dataset_folder(location)
    assert isinstance(folder, LocalFolder)
    assert folder.path == Path(path)


def test_urls_are_joined_before_their_query() -> None:
    url = check_location("https://host/a/b/?sig=x%2Fy")
    assert join_url(str(url), "manifest.json") == "https://host/a/b/manifest.json?sig=x%2Fy"
    assert check_location("s3://bucket/") == "s3://bucket"
    for file in ("../x", "a/b", ".x", "", "a" * 300, "x\n", "x?y", "x#y", "%2e%2e"):
        with pytest.raises(DataError):
            join_url(str(url), file)
        with pytest.raises(DataError):
            LocalFolder(Path()).read_bytes(file)


@given(st.text(), st.text(), st.text())
@example("u", "1/", "")
@example("u", "a?", "")
@example("/", "", "@")
def test_no_credentials_are_shown(user: str, password: str, query: str) -> None:
    url = f"https://{user}:{password}se-cret@host/path?{query}se-cret#{query}se-cret"
    assert "se-cret" not in show_url(url)


def test_urls_within_texts_are_shown_safely() -> None:
    text = show_text("503, url='https://u:p@host/x?sig=abc' failed\nfor s3://k:s@b/c?d")
    assert text == "503, url='https://host/x' failed for s3://b/c"

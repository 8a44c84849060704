"""The code cache refuses what is damaged or not its owner's, and never breaks a run."""

import os

import pytest

from sparsify.engine import cache


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sparsify"


def test_keeps_and_fetches(home):
    assert cache.fetch("a") is None
    cache.keep("a", b"code")
    assert cache.fetch("a") == b"code"
    assert home.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in home.iterdir()] == ["a"], "no temporary file is left"


@pytest.mark.parametrize("damage", [b"", b"x" * 10, b"y" * 100])
def test_damaged(home, damage):
    cache.keep("a", b"code" * 20)
    (home / "a").write_bytes(damage)
    assert cache.fetch("a") is None
    cache.keep("a", b"new")
    assert cache.fetch("a") == b"new"


def test_another_key_s_content_is_refused(home):
    cache.keep("a", b"code")
    (home / "a").rename(home / "b")
    assert cache.fetch("b") is None


def test_folder_that_others_can_write_to(home):
    cache.keep("a", b"code")
    home.chmod(0o770)
    assert cache.fetch("a") is None
    home.chmod(0o700)
    (home / "a").chmod(0o666)
    assert cache.fetch("a") is None


def test_what_nobody_used_for_longest_goes_where_there_is_too_much(home, monkeypatch):
    monkeypatch.setattr(cache, "_MOST", 3)
    for number in range(5):
        cache.keep(str(number), b"code")
        os.utime(home / str(number), (number, number))
    assert sorted(path.name for path in home.iterdir()) == ["2", "3", "4"]
    assert cache.fetch("2") == b"code"
    cache.keep("5", b"code")
    assert sorted(path.name for path in home.iterdir()) == ["2", "4", "5"]


def test_link_in_place_of_the_folder(home, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    home.symlink_to(elsewhere)
    cache.keep("a", b"code")
    assert list(elsewhere.iterdir()) == []


def test_no_folder_at_all(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache.keep("a", b"code")
    assert cache.fetch("a") is None

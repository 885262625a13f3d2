# SPDX-License-Identifier: Apache-2.0
import stat

import pytest

from blkd.daemon.dashboard.token_file import kept_token
from blkd.daemon.dashboard.visitor import Key, flaw
from blkd.errors import StateError

HERE = "127.0.0.1:9751"


@pytest.mark.parametrize("host", ["127.0.0.1:9751", "localhost:1234", "[::1]:9751", "localhost"])
def test_the_page_is_for_those_who_ask_for_this_host(host):
    assert flaw("GET", {"Host": host}) is None


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:9751", "10.0.0.1", "", "localhost:x"]
)
def test_a_name_that_was_made_to_mean_this_host_is_refused(host):
    assert flaw("GET", {"Host": host}) is not None


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Origin": "http://evil.example"}, id="another-host"),
        pytest.param({"Origin": "http://127.0.0.1:9999"}, id="another-port"),
        pytest.param({"Origin": "null"}, id="no-origin-of-its-own"),
        pytest.param({"Origin": f"http://{HERE}", "Sec-Fetch-Site": "cross-site"}, id="by-a-site"),
        pytest.param({"Sec-Fetch-Site": "same-site"}, id="by-another-port"),
    ],
)
def test_what_another_site_sends_is_refused(headers):
    assert flaw("POST", {"Host": HERE, **headers}) is not None


@pytest.mark.parametrize(
    "headers", [{}, {"Origin": f"http://{HERE}"}, {"Sec-Fetch-Site": "same-origin"}]
)
def test_what_the_page_itself_sends_is_taken(headers):
    assert flaw("POST", {"Host": HERE, **headers}) is None


def test_only_the_token_and_its_cookie_open():
    key = Key("secret")
    assert key.opens("secret")
    assert key.admits(key.cookie)
    for wrong in ("", "secre", "secret ", "sécret", "\udcff", key.cookie):
        assert not key.opens(wrong)
    for wrong in ("", "secret", key.cookie[:-1], Key("other").cookie, "\udcff"):
        assert not key.admits(wrong)


def test_daemons_have_cookies_of_different_names():
    assert Key("one").cookie_name != Key("other").cookie_name


def test_a_token_is_made_once_and_for_its_owner_only(tmp_path):
    path = tmp_path / "token"
    token = kept_token(path)
    assert len(token) == 43
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert kept_token(path) == token
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 43, b"a" * 44])
def test_a_file_without_a_token_gets_one(tmp_path, content):
    path = tmp_path / "token"
    path.write_bytes(content)
    token = kept_token(path)
    assert len(token) == 43
    assert kept_token(path) == token


def test_a_token_that_cannot_be_kept_is_an_error(tmp_path):
    with pytest.raises(StateError, match="token"):
        kept_token(tmp_path / "missing" / "token")

# SPDX-License-Identifier: Apache-2.0
import pytest

from blkd.daemon.loopback import LoopbackAddress, names_loopback, read_address
from blkd.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        pytest.param("127.0.0.1:9750", LoopbackAddress("127.0.0.1", 9750), id="v4"),
        pytest.param("127.9.9.9:1", LoopbackAddress("127.9.9.9", 1), id="another-of-v4"),
        pytest.param("[::1]:65535", LoopbackAddress("::1", 65535), id="v6"),
    ],
)
def test_an_address_of_the_loopback_is_read(text, address):
    assert read_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", "9750", "127.0.0.1", "127.0.0.1:", "::1:9750", "[::1]", "localhost:9750"),
        *("127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:\u0661", "127.1:80"),
        *("0.0.0.0:9750", "10.0.0.1:9750", "[::]:9750", "[fe80::1]:9750", "[::ffff:10.0.0.1]:1"),
    ],
)
def test_every_other_address_is_refused(text):
    with pytest.raises(ConfigError):
        read_address(text)


@pytest.mark.parametrize("host", ["127.0.0.1:9750", "localhost", "LocalHost:1", "[::1]:9750"])
def test_this_host_is_known_by_its_names(host):
    assert names_loopback(host)


@pytest.mark.parametrize("host", ["", "evil.example:9750", "127.0.0.1.evil.example", "10.0.0.1"])
def test_no_other_name_is_that_of_this_host(host):
    assert not names_loopback(host)

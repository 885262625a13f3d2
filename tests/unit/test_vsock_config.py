# SPDX-License-Identifier: Apache-2.0
"""Guests of one command line: no path of one leads to another."""

import pytest

from blkd.errors import ConfigError
from blkd.export.vsock_config import VsockConfig


def config(*uds, sockets=("/run/s3", "/run/s4"), control=None):
    return VsockConfig(name="vsock", cid=(3, 4), socket=sockets, uds=uds, control=control)


@pytest.mark.parametrize("other", ["/run/a_x", "/run/a5", "/run/a_5b", "/run/a.sock", "/run/a_"])
def test_paths_that_only_look_alike_are_taken(other):
    assert [guest.uds for guest in config("/run/a", other).guests] == ["/run/a", other]


@pytest.mark.parametrize("other", ["/run/a_5", "/run/a.seqpacket", "/run//a_05", "/run/a"])
def test_a_path_that_belongs_to_another_guest_is_refused(other):
    with pytest.raises(ConfigError):
        config("/run/a", other)
    with pytest.raises(ConfigError):
        config(other, "/run/a")
    with pytest.raises(ConfigError):
        config("/run/a", "/run/b", sockets=("/run/s3", other))
    with pytest.raises(ConfigError):
        config("/run/a", "/run/b", control=other)

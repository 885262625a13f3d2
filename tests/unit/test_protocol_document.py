# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

from blkd.vhost_user.document import page
from blkd.vhost_user.requests import BACKEND_REQUESTS, PROTOCOL_FEATURES, VIRTIO_FEATURES
from blkd.vhost_user.wire import BackendRequest, ProtocolFeature, VirtioFeature
from blkd.virtio import blk

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.md"
DEVICE_PART = "\n## The block device\n"
FIRST_RESERVED_BIT = 24  # those below are the device's own


def test_the_protocol_document_says_what_is_declared():
    printed, _, _ = DOCUMENT.read_text().partition(DEVICE_PART)
    assert printed == page(), "run: python -m blkd.vhost_user.document"


def test_each_bit_and_back_end_request_is_declared():
    assert set(PROTOCOL_FEATURES) == set(ProtocolFeature)
    assert set(VIRTIO_FEATURES) == set(VirtioFeature)
    assert set(BACKEND_REQUESTS) == set(BackendRequest)


def test_the_protocol_document_knows_the_block_device_s_own_bits():
    _, _, device = DOCUMENT.read_text().partition(DEVICE_PART)
    rows = re.findall(r"^\| (\d+) \| (\w+) \| ([\w ]+) \|", device, re.MULTILINE)
    supported = {(int(bit), name) for bit, name, state in rows if state == "supported"}
    known = {(feature.bit_length() - 1, feature.name) for feature in blk.Feature}
    assert supported == {(bit, name) for bit, name in known if bit < FIRST_RESERVED_BIT}


def test_the_device_offers_only_ring_features_that_are_declared_as_supported():
    for feature in blk.Feature:
        if feature.bit_length() - 1 >= FIRST_RESERVED_BIT:
            assert VIRTIO_FEATURES[VirtioFeature(feature)].support.value == "supported"

# SPDX-License-Identifier: Apache-2.0
import json
import shlex
import xml.etree.ElementTree as ET

import pytest

from blkd.cli.recipes import VMMS, Disk, recipe
from blkd.errors import ConfigError

DISK = Disk(socket="/run/blkd/demo.sock", queues=2)


def words(vmm, disk=DISK):
    return shlex.split(recipe(vmm, disk).text.replace("\\\n", ""))


@pytest.mark.parametrize("vmm", VMMS)
def test_every_recipe_names_the_socket_and_the_vmm(vmm):
    result = recipe(vmm, DISK)
    assert DISK.socket in result.text
    assert result.vmm == vmm
    assert result.notes


@pytest.mark.parametrize("vmm", ["qemu", "libvirt", "cloud-hypervisor", "crosvm"])
def test_the_ring_is_256_where_the_vmm_can_be_told(vmm):
    assert "256" in recipe(vmm, DISK).text


@pytest.mark.parametrize(
    ("version", "option"),
    [
        ((7, 2), "reconnect=1"),
        ((9, 1), "reconnect=1"),
        ((9, 2), "reconnect-ms=1000"),
        ((10, 0), "reconnect-ms=1000"),
        (None, "reconnect-ms=1000"),
    ],
)
def test_qemu_is_told_to_reconnect_in_its_own_words(version, option):
    chardev = words("qemu", Disk(socket="/a.sock", qemu=version))
    assert f"socket,id=blkd,path=/a.sock,{option}" in chardev


def test_qemu_shares_all_of_the_guests_memory():
    arguments = words("qemu")
    memory = arguments[arguments.index("-m") + 1]
    assert f"memory-backend-memfd,id=ram,size={memory},share=on" in arguments
    assert "memory-backend=ram" in arguments[arguments.index("-machine") + 1]


def test_a_comma_in_the_path_is_doubled_for_qemu():
    assert any("path=/a,,b.sock," in word for word in words("qemu", Disk(socket="/a,b.sock")))


@pytest.mark.parametrize("vmm", ["cloud-hypervisor", "crosvm"])
def test_a_comma_in_the_path_is_refused_where_it_cannot_be_written(vmm):
    with pytest.raises(ConfigError, match="comma"):
        recipe(vmm, Disk(socket="/a,b.sock"))


@pytest.mark.parametrize("vmm", ["qemu", "cloud-hypervisor", "firecracker", "crosvm"])
def test_a_path_of_odd_characters_survives_the_shell(vmm):
    path = "/it's a $disk.sock"
    assert any(path in word for word in words(vmm, Disk(socket=path)))


def test_libvirt_gets_well_formed_xml_whatever_the_path():
    path = '/it\'s <a> & "b".sock'
    domain = ET.fromstring(f"<domain>{recipe('libvirt', Disk(socket=path)).text}</domain>")
    disk = domain.find("devices/disk")
    assert disk.find("source").get("path") == path
    assert disk.find("source/reconnect").get("enabled") == "yes"
    assert disk.find("target").get("bus") == "virtio"
    assert domain.find("memoryBacking/access").get("mode") == "shared"


def test_firecracker_gets_json_with_flushes_asked_for():
    arguments = words("firecracker")
    drive = json.loads(arguments[arguments.index("-d") + 1])
    assert drive == {
        "drive_id": "blkd",
        "is_root_device": False,
        "cache_type": "Writeback",
        "socket": DISK.socket,
    }


def test_crosvm_is_kept_from_its_ring_of_32768():
    assert "block,socket=/run/blkd/demo.sock,max-queue-size=256" in words("crosvm")

# SPDX-License-Identifier: Apache-2.0
import json
import shlex
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from blkd.cli.recipes import KINDS, VMMS, Attachment, recipe
from blkd.errors import ConfigError

DISK = Attachment(
    socket="/run/blkd/demo.sock",
    queues=2,
    queue_size=256,
    qemu=None,
    name="blkd",
    target="vdb",
    memory=4 << 30,
)


def disk_with(**changes):
    return replace(DISK, **changes)


def words(vmm, disk=DISK):
    return shlex.split(recipe(vmm, "blk", disk).text.replace("\\\n", ""))


@pytest.mark.parametrize("vmm", VMMS)
def test_every_recipe_names_the_socket_and_the_vmm(vmm):
    result = recipe(vmm, "blk", DISK)
    assert DISK.socket in result.text
    assert result.vmm == vmm
    assert result.notes


@pytest.mark.parametrize("vmm", ["qemu", "libvirt", "cloud-hypervisor", "crosvm"])
def test_the_ring_is_256_where_the_vmm_has_an_option_for_it(vmm):
    assert "256" in recipe(vmm, "blk", DISK).text


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
def test_qemu_reconnects_by_the_option_of_its_version(version, option):
    chardev = words("qemu", disk_with(socket="/a.sock", qemu=version))
    assert f"socket,id=blkd,path=/a.sock,{option}" in chardev


def test_qemu_shares_all_of_the_guests_memory():
    arguments = words("qemu")
    memory = arguments[arguments.index("-m") + 1]
    assert f"memory-backend-memfd,id=ram,size={memory},share=on" in arguments
    assert "memory-backend=ram" in arguments[arguments.index("-machine") + 1]


def test_a_comma_in_the_path_is_doubled_for_qemu():
    assert any("path=/a,,b.sock," in word for word in words("qemu", disk_with(socket="/a,b.sock")))


@pytest.mark.parametrize("vmm", ["cloud-hypervisor", "crosvm"])
def test_a_comma_in_the_path_is_refused_where_it_cannot_be_written(vmm):
    with pytest.raises(ConfigError, match="comma"):
        recipe(vmm, "blk", disk_with(socket="/a,b.sock"))


@pytest.mark.parametrize("vmm", ["qemu", "cloud-hypervisor", "firecracker", "crosvm"])
def test_a_path_of_odd_characters_survives_the_shell(vmm):
    path = "/it's a $disk.sock"
    assert any(path in word for word in words(vmm, disk_with(socket=path)))


def test_libvirt_gets_well_formed_xml_whatever_the_path():
    path = '/it\'s <a> & "b".sock'
    domain = ET.fromstring(
        f"<domain>{recipe('libvirt', 'blk', disk_with(socket=path)).text}</domain>"
    )
    disk = domain.find("devices/disk")
    assert disk.find("source").get("path") == path
    assert disk.find("source/reconnect").get("enabled") == "yes"
    assert disk.find("target").get("bus") == "virtio"
    assert domain.find("memoryBacking/access").get("mode") == "shared"


SECOND = disk_with(socket="/second.sock", name="data", target="vdc", memory=1536 << 20)


def test_a_second_disk_has_names_of_its_own():
    qemu = words("qemu", SECOND)
    assert any(word.startswith("socket,id=data,path=/second.sock,") for word in qemu)
    assert any("chardev=data," in word for word in qemu)
    assert not any("blkd" in word for word in qemu)
    domain = ET.fromstring(f"<domain>{recipe('libvirt', 'blk', SECOND).text}</domain>")
    assert domain.find("devices/disk/target").get("dev") == "vdc"
    drive = words("firecracker", SECOND)
    assert "http://localhost/drives/data" in drive
    assert json.loads(drive[drive.index("-d") + 1])["drive_id"] == "data"


def test_the_memory_is_written_as_every_vmm_reads_it():
    assert "size=1536M,shared=on" in words("cloud-hypervisor", SECOND)
    assert "memory-backend-memfd,id=ram,size=1536M,share=on" in words("qemu", SECOND)
    assert disk_with(socket="/a", memory=2 << 30).memory_text == "2G"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "a,b"}, "'a,b' is no name"),
        ({"name": "0"}, "'0' is no name"),
        ({"name": ""}, "'' is no name"),
        ({"target": "sda"}, "'sda' is no target"),
        ({"target": "vdb'/>"}, "is no target"),
        ({"memory": 0}, "memory of 0"),
        ({"memory": 1000}, "memory of 1000"),
    ],
)
def test_what_no_vmm_would_take_is_refused(changes, reason):
    with pytest.raises(ConfigError, match=reason):
        disk_with(socket="/a.sock", **changes)


def test_a_name_that_firecracker_would_not_take_is_refused():
    with pytest.raises(ConfigError, match="firecracker"):
        recipe("firecracker", "blk", disk_with(socket="/a.sock", name="a-b"))


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


OTHERS = [(kind, vmm) for kind in ("vsock", "net") for vmm in KINDS[kind]]


@pytest.mark.parametrize(("kind", "vmm"), OTHERS)
def test_a_device_that_is_no_disk_has_its_recipes_too(kind, vmm):
    result = recipe(vmm, kind, DISK)
    assert DISK.socket in result.text
    assert "blk" not in result.text.replace("blkd", "")
    assert result.vmm == vmm
    assert result.notes


def test_what_a_vmm_cannot_attach_is_refused_with_those_that_can():
    with pytest.raises(ConfigError, match="firecracker attaches no net") as refused:
        recipe("firecracker", "net", DISK)
    assert "qemu" in refused.value.hint


def test_qemu_has_a_vector_for_each_queue_of_several_pairs():
    assert "mq=on,vectors=6" in recipe("qemu", "net", DISK).text
    assert "mq=on" not in recipe("qemu", "net", disk_with(queues=1)).text

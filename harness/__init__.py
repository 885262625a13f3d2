# SPDX-License-Identifier: Apache-2.0
"""What surrounds a disk: tests, drills, the demo and the comparison stand on it.

A Linux guest (guest, agent, fio, qmp, initramfs), a front end and a back end made by hand
(frontend, disk, vring, packed_vring, dirtylog; backend), storage that fails (storage, fuse), and
blkd run as a program (daemon, server).  It knows blkd by its command line and its sockets, and
nothing of it but the type of its errors: what it says is written down again from the
specifications, so that an error in blkd cannot hide behind the same error here.
"""

"""The families a recipe may name; what a family is: chroot/family.py."""

from __future__ import annotations

from collections.abc import Mapping

from images.builder.chroot import rpm
from images.builder.chroot.debian import DEBIAN, UBUNTU
from images.builder.chroot.family import Family

FAMILIES: Mapping[str, Family] = {"debian": DEBIAN, "ubuntu": UBUNTU, "rpm": rpm}

"""Layers merged into one tree by the OCI rules, and that tree written as one tar stream.

Two passes over the decompressed layers: the first reads headers into a tree (whiteouts, hard links
across layers, replacements), the second copies the content of the files that are left. Memory goes
with the number of entries, never with their size. Nothing is unpacked on the host: a hostile name
can at worst name something inside the image.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hutch.errors import error
from hutch.images import tar
from hutch.images.compression import Decompressed, copy_stream
from hutch.images.config import bad_image

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_RESERVED = b".wh..wh."  # AUFS's own files, which container tools skip
_LINKS_LIMIT = 255
_DEPTH_LIMIT = 2048
_NAME_LIMIT = 255
_ENTRIES_LIMIT = 4_000_000
# What squashfs and erofs can hold. The guest's own overlay reads trusted.overlay.*: no image may
# speak to it.
_XATTRS = (b"user.", b"trusted.", b"security.")
_OVERLAY = b"trusted.overlay."


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's blob, as it lies in the store, and the digest of its decompressed content."""

    path: Path
    diff_id: str
    limit: int


class _Inode:
    """What names can share by hard links: metadata, where the content is, and, in the end, the
    names.
    """

    __slots__ = ("layer", "member", "ordinal", "paths")

    def __init__(self, member: tar.Member, layer: int, ordinal: int) -> None:
        self.member = member
        self.layer = layer
        self.ordinal = ordinal
        self.paths: list[bytes] = []


class _Node:
    """A name in the tree. `children` is None unless it is a directory; `layer` is the last that
    named it.
    """

    __slots__ = ("children", "inode", "layer")

    def __init__(self, inode: _Inode, layer: int) -> None:
        self.inode = inode
        self.layer = layer
        self.children: dict[bytes, _Node] | None = (
            {} if inode.member.kind == tar.DIRECTORY else None
        )


class Tree:
    """The merged tree of an image's layers."""

    def __init__(self) -> None:
        self._root = _Node(_Inode(tar.Member(b".", tar.DIRECTORY), -1, -1), -1)
        self._layer = -1
        self._count = 0

    def add_layer(self, stream: Decompressed) -> None:
        """Merge the next layer over what is there. Raises ImageError (bad_image)."""
        self._layer += 1
        for ordinal, member in enumerate(tar.read_members(stream)):
            self._count += 1
            if self._count > _ENTRIES_LIMIT:
                raise bad_image(f"the image has more than {_ENTRIES_LIMIT} entries")
            self._add(member, ordinal)

    def _add(self, member: tar.Member, ordinal: int) -> None:
        parts = _parts(member.name)
        if not parts:
            if member.kind == tar.DIRECTORY:
                self._root.inode = self._inode(member, ordinal)
                return
            raise bad_image(f"the root directory is a tar entry of type {member.kind!r}")
        base = parts.pop()
        if base.startswith(_WHITEOUT):
            self._whiteout(parts, base)
            return
        if len(base) > _NAME_LIMIT:
            raise bad_image(f"{tar.show_name(base)}… is a name longer than {_NAME_LIMIT} bytes")
        if member.kind == tar.HARDLINK:
            inode = self._link_target(member)
            children = self._children(self._directory(parts))
            children[base] = _Node(inode, self._layer)
            return
        children = self._children(self._directory(parts))
        old = children.get(base)
        inode = self._inode(member, ordinal)
        if member.kind == tar.DIRECTORY and old is not None and old.children is not None:
            old.inode, old.layer = inode, self._layer
        else:
            children[base] = _Node(inode, self._layer)

    def _inode(self, member: tar.Member, ordinal: int) -> _Inode:
        member.xattrs = {
            key: value
            for key, value in member.xattrs.items()
            if key.startswith(_XATTRS) and not key.startswith(_OVERLAY)
        }
        return _Inode(member, self._layer, ordinal)

    def _link_target(self, member: tar.Member) -> _Inode:
        parts = _parts(member.link)
        parent = self._find(parts[:-1]) if parts else None
        node = parent.children.get(parts[-1]) if parent and parent.children is not None else None
        if node is None or node.children is not None:
            raise bad_image(
                f"{tar.show_name(member.name)} is a hard link to {tar.show_name(member.link)}, "
                "which is no file of the image"
            )
        return node.inode

    def _whiteout(self, parts: list[bytes], base: bytes) -> None:
        directory = self._find(parts)
        if directory is None or directory.children is None:
            return
        if base == _OPAQUE:
            self._prune(directory)
            return
        if base.startswith(_RESERVED):
            return
        name = base[len(_WHITEOUT) :]
        if name in (b"", b".", b".."):
            raise bad_image(f"{tar.show_name(base)} is no name that a whiteout can have")
        node = directory.children.get(name)
        if node is None:
            return
        self._prune(node)
        # A whiteout hides lower layers only, wherever in its own layer it stands.
        if node.layer != self._layer and not node.children:
            del directory.children[name]

    def _prune(self, top: _Node) -> None:
        """Remove below `top` what this layer has not named itself."""
        order = [top]
        for node in order:
            order.extend(child for child in (node.children or {}).values() if child.children)
        for node in reversed(order):
            children = node.children or {}
            for name in [
                name
                for name, child in children.items()
                if child.layer != self._layer and not child.children
            ]:
                del children[name]

    def _find(self, parts: list[bytes]) -> _Node | None:
        """Return the directory at a path, symlinks followed inside the image, or None."""
        return self._walk(parts, create=False)

    def _directory(self, parts: list[bytes]) -> _Node:
        """Return the directory at a path; what is missing or in the way becomes a directory."""
        found = self._walk(parts, create=True)
        assert found is not None
        return found

    def _walk(self, parts: list[bytes], *, create: bool) -> _Node | None:
        stack = [self._root]
        pending = parts[::-1]
        follows = 0
        while pending:
            part = pending.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":  # of a symlink's target; it ends at the image's root, as in a chroot
                if len(stack) > 1:
                    stack.pop()
                continue
            children = self._children(stack[-1])
            node = children.get(part)
            if node is not None and node.inode.member.kind == tar.SYMLINK:
                follows += 1
                if follows > _LINKS_LIMIT:
                    raise bad_image(
                        f"{tar.show_name(b'/'.join(parts))} goes through a loop of symlinks"
                    )
                target = node.inode.member.link
                if target.startswith(b"/"):
                    del stack[1:]
                pending.extend(reversed(target.split(b"/")))
                continue
            if node is None or node.children is None:
                if not create:
                    return None
                if len(part) > _NAME_LIMIT:
                    raise bad_image(f"{tar.show_name(part)}… is longer than {_NAME_LIMIT} bytes")
                node = _Node(_Inode(tar.Member(part, tar.DIRECTORY), self._layer, -1), -1)
                children[part] = node
            stack.append(node)
            if len(stack) > _DEPTH_LIMIT:
                raise bad_image(f"the image has directories more than {_DEPTH_LIMIT} deep")
        return stack[-1]

    @staticmethod
    def _children(node: _Node) -> dict[bytes, _Node]:
        assert node.children is not None
        return node.children

    def content_size(self) -> int:
        """Return the bytes of all files, hard links counted once."""
        sizes = {id(i): i.member.size for _, i in self.inodes() if i.member.kind == tar.FILE}
        return sum(sizes.values())

    def inodes(self) -> Iterator[tuple[bytes, _Inode]]:
        """Yield each name's path and inode, directories before what is in them."""
        yield b"./", self._root.inode
        stack = [(b"", self._root)]
        while stack:
            prefix, node = stack.pop()
            for name, child in self._children(node).items():
                path = prefix + name
                yield path, child.inode
                if child.children is not None:
                    stack.append((path + b"/", child))


def merge(layers: Sequence[Layer], advance: Callable[[int], None]) -> Tree:
    """Return the tree of all layers, the lowest first, each checked against its diff_id.

    Raises ImageError (bad_image, digest_mismatch).
    """
    tree = Tree()
    for layer in layers:
        with Decompressed(layer.path, limit=layer.limit, hashed=True, advance=advance) as stream:
            tree.add_layer(stream)
            stream.drain()
            if f"sha256:{stream.digest}" != layer.diff_id:
                raise error(
                    "digest_mismatch",
                    f"the layer {layer.diff_id} decompresses to content of sha256:{stream.digest}",
                )
    return tree


def write_tar(
    tree: Tree, layers: Sequence[Layer], out: IO[bytes], advance: Callable[[int], None]
) -> None:
    """Write the merged tree as one archive: everything but files first, then files as the layers
    have them.
    """
    wanted: list[dict[int, _Inode]] = [{} for _ in layers]
    for path, inode in tree.inodes():
        kind = inode.member.kind
        inode.paths.append(path)
        inode.member.name = inode.paths[0]
        if kind == tar.FILE:
            wanted[inode.layer][inode.ordinal] = inode
        elif len(inode.paths) == 1:
            out.write(tar.header(inode.member))
        else:
            _write_links(inode, out, start=len(inode.paths) - 1)
    for layer, inodes in zip(layers, wanted, strict=True):
        if not inodes:
            continue
        with Decompressed(layer.path, limit=layer.limit, advance=advance) as stream:
            for ordinal, member in enumerate(tar.read_members(stream)):
                kept = inodes.get(ordinal)
                if kept is not None:
                    out.write(tar.header(kept.member))
                    copy_stream(stream, out, member.size)
                    out.write(tar.padding(member.size))
                    _write_links(kept, out)
    tar.finish(out)


def _write_links(inode: _Inode, out: IO[bytes], start: int = 1) -> None:
    for path in inode.paths[start:]:
        link = tar.Member(path, tar.HARDLINK, inode.member.mode, link=inode.paths[0])
        out.write(tar.header(link))


def _parts(name: bytes) -> list[bytes]:
    """Return a name's parts, normalised; an absolute one is taken from the root. `..` out of it is
    refused.
    """
    absolute = name.startswith(b"/")
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
            elif not absolute:
                raise bad_image(f"{tar.show_name(name)} points out of the image")
        elif part not in (b"", b"."):
            parts.append(part)
    return parts

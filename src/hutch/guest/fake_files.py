"""The file system of the fake agent: a dict of nodes in memory, with the errors of the real one.

Good enough for the service's tests: symlinks, modes and owners, tar trees; no permissions, no
devices.
"""

import io
import posixpath
import tarfile
import time
from dataclasses import dataclass, field
from typing import Any, Final

_LINKS: Final = 40
_ERRNO: Final = {
    "not_found": 2,
    "exists": 17,
    "not_dir": 20,
    "is_dir": 21,
    "loop": 40,
    "not_empty": 39,
}


class FakeError(Exception):
    """An ERROR frame in the making: one of the protocol's codes, and words."""

    def __init__(self, code: str, words: str = "") -> None:
        super().__init__(code)
        self.message = {"code": code, "message": words or code, "errno": _ERRNO.get(code)}


@dataclass(slots=True)
class Node:
    """A file, directory or symlink."""

    type: str
    mode: int
    uid: int = 0
    gid: int = 0
    data: bytes = b""
    target: bytes | None = None
    mtime_ns: int = field(default_factory=time.time_ns)


class FakeFiles:
    """Nodes by absolute path, `/` always among them."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {"/": Node("dir", 0o755)}
        for path in ("/bin", "/data", "/dev", "/etc", "/home", "/root", "/srv", "/tmp", "/var"):
            self.nodes[path] = Node("dir", 0o1777 if path == "/tmp" else 0o755)
        self.nodes["/etc/hostname"] = Node("file", 0o644, data=b"fake\n")

    # ---- paths

    def resolve(self, raw: Any, *, follow: bool = True, _depth: int = 0) -> str:
        """Return the path with its links resolved; the last part may be missing."""
        text = raw.decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else raw
        if not isinstance(text, str) or not text.startswith("/"):
            raise FakeError("bad_request", "the path is not absolute")
        if _depth > _LINKS:
            raise FakeError("loop")
        done = "/"
        parts = [part for part in posixpath.normpath(text).split("/") if part]
        for index, part in enumerate(parts):
            done = posixpath.join(done, part)
            node = self.nodes.get(done)
            last = index == len(parts) - 1
            if node is not None and node.target is not None and (follow or not last):
                link = node.target.decode("utf-8", "surrogateescape")
                rest = posixpath.join(posixpath.dirname(done), link, *parts[index + 1 :])
                return self.resolve(rest, follow=follow, _depth=_depth + 1)
            if not last and node is None:
                raise FakeError("not_found", "No such file or directory")
            if not last and node is not None and node.type != "dir":
                raise FakeError("not_dir", "Not a directory")
        return done

    def get(self, raw: Any, *, follow: bool = True) -> tuple[str, Node]:
        """Return the resolved path and its node, or raise not_found."""
        path = self.resolve(raw, follow=follow)
        if path not in self.nodes:
            raise FakeError("not_found", "No such file or directory")
        return path, self.nodes[path]

    def directory(self, raw: Any) -> str:
        """Return the path of a directory, or raise not_dir."""
        path, node = self.get(raw)
        if node.type != "dir":
            raise FakeError("not_dir", "Not a directory")
        return path

    def below(self, path: str) -> list[str]:
        """Return the paths below a directory, sorted, parents first."""
        prefix = path.rstrip("/") + "/"
        return sorted(other for other in self.nodes if other.startswith(prefix) and other != "/")

    def children(self, path: str) -> list[str]:
        """Return the paths of a directory's own entries, sorted."""
        return [other for other in self.below(path) if posixpath.dirname(other) == path]

    def entry(self, path: str) -> dict[str, Any]:
        """Return the protocol's entry for a node."""
        node = self.nodes[path]
        return {
            "name": posixpath.basename(path).encode("utf-8", "surrogateescape"),
            "type": node.type,
            "mode": node.mode,
            "uid": node.uid,
            "gid": node.gid,
            "size": len(node.target if node.target is not None else node.data),
            "mtime_ns": node.mtime_ns,
            "nlink": 1,
            "rdev": 0,
            "target": node.target,
        }

    # ---- unary operations, by their names in the protocol

    def stat(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer fs.stat."""
        path, _ = self.get(request["path"], follow=request.get("follow", True))
        return {"entry": self.entry(path)}

    def mkdir(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer fs.mkdir."""
        if request.get("parents"):
            self.make_parents(request["path"])
        path = self.resolve(request["path"])
        if path in self.nodes:
            if request.get("parents") and self.nodes[path].type == "dir":
                return {}
            raise FakeError("exists", "File exists")
        self.nodes[path] = Node("dir", request.get("mode", 0o755), *self._owner(request))
        return {}

    def remove(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer fs.remove."""
        path, _ = self.get(request["path"], follow=False)
        inside = self.below(path)
        if inside and not request.get("recursive"):
            raise FakeError("not_empty", "Directory not empty")
        if path == "/":
            raise FakeError("busy")
        for gone in [path, *inside]:
            del self.nodes[gone]
        return {}

    def rename(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer fs.rename."""
        source, _ = self.get(request["from"], follow=False)
        target = self.resolve(request["to"], follow=False)
        if target in self.nodes and not request.get("replace", True):
            raise FakeError("exists", "File exists")
        if self.below(target) and target != source:
            raise FakeError("not_empty", "Directory not empty")
        moved = {old: target + old[len(source) :] for old in [source, *self.below(source)]}
        nodes = {new: self.nodes.pop(old) for old, new in moved.items()}
        self.nodes.update(nodes)
        return {}

    def chmod(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer fs.chmod."""
        path, _ = self.get(request["path"])
        for touched in [path, *(self.below(path) if request.get("recursive") else [])]:
            self.nodes[touched].mode = request["mode"]
        return {}

    def chown(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer fs.chown."""
        path, _ = self.get(request["path"], follow=request.get("follow", False))
        for touched in [path, *(self.below(path) if request.get("recursive") else [])]:
            self.nodes[touched].uid, self.nodes[touched].gid = self._owner(request)
        return {}

    def symlink(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer fs.symlink."""
        path = self.resolve(request["path"], follow=False)
        if path in self.nodes:
            raise FakeError("exists", "File exists")
        self.nodes[path] = Node("symlink", 0o777, target=request["target"])
        return {}

    # ---- contents

    def read(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Return the entry and the wanted bytes of a file."""
        path, node = self.get(request["path"])
        if node.type == "dir":
            raise FakeError("is_dir", "Is a directory")
        start, length = request.get("offset") or 0, request.get("length")
        end = len(node.data) if length is None else start + length
        return {"entry": self.entry(path)}, node.data[start:end]

    def check_write(self, request: dict[str, Any]) -> str:
        """Return where fs.write will put its bytes."""
        if request.get("parents"):
            self.make_parents(request["path"])
        path = self.resolve(request["path"])
        node = self.nodes.get(path)
        if posixpath.dirname(path) not in self.nodes:
            raise FakeError("not_found", "No such file or directory")
        if node is not None and node.type == "dir":
            raise FakeError("is_dir", "Is a directory")
        if node is not None and request.get("exclusive"):
            raise FakeError("exists", "File exists")
        return path

    def write(self, path: str, request: dict[str, Any], data: bytes) -> None:
        """Put the bytes of a finished fs.write in place."""
        old = self.nodes.get(path)
        if old is not None and request.get("append"):
            data = old.data + data
        node = old or Node("file", 0o644)
        node.data, node.mtime_ns = data, time.time_ns()
        if request.get("mode") is not None:
            node.mode = request["mode"]
        node.uid, node.gid = self._owner(request, node)
        self.nodes[path] = node

    def make_parents(self, raw: bytes) -> None:
        """Make the missing directories above a path."""
        parents = raw.decode("utf-8", "surrogateescape").strip("/").split("/")[:-1]
        for index in range(len(parents)):
            path = self.resolve("/" + "/".join(parents[: index + 1]))
            self.nodes.setdefault(path, Node("dir", 0o755))

    def read_tar(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes, int]:
        """Return the entry, the tar stream and the number of its entries."""
        top, _ = self.get(request["path"], follow=request.get("follow", False))
        name = request.get("name", posixpath.basename(top).encode()).decode() or "."
        paths = [top, *self.below(top)]
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path in paths:
                node = self.nodes[path]
                member = tarfile.TarInfo(name + path[len(top.rstrip("/")) :])
                kinds = {"dir": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE}
                member.type = kinds.get(node.type, tarfile.REGTYPE)
                member.mode, member.uid, member.gid = node.mode, node.uid, node.gid
                member.mtime = node.mtime_ns // 1_000_000_000
                member.size = len(node.data)
                member.linkname = (node.target or b"").decode("utf-8", "surrogateescape")
                archive.addfile(member, io.BytesIO(node.data))
        return {"entry": self.entry(top)}, stream.getvalue(), len(paths)

    def write_tar(self, request: dict[str, Any], data: bytes) -> int:
        """Unpack a tar stream below a directory; return the number of entries."""
        if request.get("parents"):
            self.make_parents(request["path"] + b"/x")
        top = self.directory(request["path"])
        count = 0
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                for member in archive:
                    self._unpack(archive, member, top, request)
                    count += 1
        except tarfile.TarError as failure:
            raise FakeError("bad_request", f"not a tar stream: {failure}") from failure
        return count

    def _unpack(
        self,
        archive: tarfile.TarFile,
        member: tarfile.TarInfo,
        top: str,
        request: dict[str, Any],
    ) -> None:
        inner = posixpath.normpath("/" + member.name)
        if ".." in member.name.split("/"):
            raise FakeError("bad_request", "a name in the archive leads outside")
        path = top if inner == "/" else top.rstrip("/") + inner
        content = archive.extractfile(member) if member.isfile() else None
        kind = "dir" if member.isdir() else "symlink" if member.issym() else "file"
        self.nodes[path] = Node(
            kind,
            member.mode,
            *self._owner(request, Node("file", 0, member.uid, member.gid)),
            data=content.read() if content else b"",
            target=member.linkname.encode("utf-8", "surrogateescape") if member.issym() else None,
        )

    @staticmethod
    def _owner(request: dict[str, Any], default: Node | None = None) -> tuple[int, int]:
        uid, gid = request.get("uid"), request.get("gid")
        return (
            uid if uid is not None else (default.uid if default else 0),
            gid if gid is not None else (default.gid if default else 0),
        )

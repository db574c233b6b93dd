"""Policies that have a name: the modes, files in `$HUTCH_HOME/policies`, and any file by its path.

A file is TOML or JSON with the fields of a policy, `extends`, and a table `presets` of further
ones. A reference is `NAME`, `NAME#PRESET`, `PATH` or `PATH#PRESET`. Judges nothing.
"""

import json
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from hutch.errors import HutchError, InvalidInput, error
from hutch.network.policy import Rules
from hutch.networking import NetworkMode, NetworkPolicy

BUILT_IN: dict[str, NetworkPolicy] = {
    "public": NetworkPolicy(NetworkMode.PUBLIC, preset="public"),
    "deny": NetworkPolicy(NetworkMode.DENY, preset="deny"),
    "open": NetworkPolicy(NetworkMode.OPEN, preset="open"),
    "none": NetworkPolicy(NetworkMode.NONE, preset="none"),
    "offline": NetworkPolicy(NetworkMode.NONE, preset="offline"),
}

FILE_MAX = 1 << 20
"""Bytes of a policy file."""
DEPTH_MAX = 8
"""How long a chain of `extends` may be."""
PARTS_MAX = 64
"""Policies that one may be made of."""
KNOWN_MAX = 1000

_T = TypeVar("_T")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_SUFFIXES = (".toml", ".json")
_FIELDS = ("mode", "extends", "allow", "deny", "allow_host", "allow_lan")


@dataclass(frozen=True, slots=True)
class Preset:
    """A policy by its reference; `error` says what is wrong with its file, and then it has none.

    `origin` is the path of its file, or `built in`.
    """

    reference: str
    origin: str
    policy: NetworkPolicy | None = None
    error: str | None = None


def is_reference(text: str) -> bool:
    """Return whether a text has the form of a path or of a name with a preset, not of a target."""
    head = text.partition("#")[0]
    return "://" not in text and ("#" in text or _is_path(head))


def load(reference: str, directory: Path) -> NetworkPolicy:
    """Return the policy of a reference, whose rules are checked; `directory` holds named ones.

    Paths are relative to the working directory. Raises NotFound (policy_not_found), InvalidInput
    (bad_policy).
    """
    found = _Loader(directory).load(reference, Path())
    return replace(found, preset=reference)


def known(directory: Path) -> list[Preset]:
    """Return all policies that have a name, those built in first."""
    found = [Preset(name, "built in", policy) for name, policy in BUILT_IN.items()]
    loader = _Loader(directory)
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix in _SUFFIXES)
    except OSError:
        return found
    for path in paths:
        if not _NAME.fullmatch(path.stem) or path.stem in BUILT_IN:
            what = "a built-in policy's" if path.stem in BUILT_IN else "none that a policy can have"
            found.append(Preset(path.stem, str(path), error=f"its name is {what}"))
            continue
        for reference in loader.references(path):
            try:
                policy = replace(loader.load(reference, directory), preset=reference)
                found.append(Preset(reference, str(path), policy))
            except HutchError as cause:
                found.append(Preset(reference, str(path), error=cause.message))
        if len(found) >= KNOWN_MAX:
            break
    return found[:KNOWN_MAX]


def extended(
    base: NetworkPolicy,
    *,
    mode: NetworkMode | None = None,
    allow: Sequence[str] = (),
    deny: Sequence[str] = (),
    allow_host: Sequence[int] = (),
    allow_lan: bool | None = None,
) -> NetworkPolicy:
    """Return a policy with more rules, and with another mode if one is given. Checks nothing."""
    return NetworkPolicy(
        mode=base.mode if mode is None else mode,
        allow=_joined(base.allow, allow),
        deny=_joined(base.deny, deny),
        allow_host=_joined(base.allow_host, allow_host),
        allow_lan=base.allow_lan if allow_lan is None else allow_lan,
        preset=base.preset,
    )


def _joined(first: Iterable[_T], second: Iterable[_T]) -> list[_T]:
    return list(dict.fromkeys((*first, *second)))


def _is_path(text: str) -> bool:
    return "/" in text or text.endswith(_SUFFIXES)


def _bad(where: object, what: str, hint: str | None = None) -> HutchError:
    return error("bad_policy", f"{where}: {what}", hint=hint)


class _Loader:
    """Reads each file once, and follows `extends`, for one question."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tables: dict[Path, dict[str, Any]] = {}
        self._done: dict[tuple[Path, str], NetworkPolicy] = {}

    def references(self, path: Path) -> list[str]:
        """Return the references of what a file of the directory holds; one that is broken: one."""
        try:
            table = self._table(path)
        except HutchError:
            return [path.stem]
        presets = table.get("presets")
        names = list(presets) if isinstance(presets, dict) else []
        whole = [path.stem] if not names or table.keys() - {"presets"} else []
        return whole + [f"{path.stem}#{name}" for name in names]

    def load(
        self, reference: str, base: Path, path: Path | None = None, chain: tuple[str, ...] = ()
    ) -> NetworkPolicy:
        """Return the policy of a reference that stands in `path`, if not in a command line.

        `base` is where relative paths begin.
        """
        head, _, preset = reference.partition("#")
        if not preset and head in BUILT_IN:
            return BUILT_IN[head]
        found = path if path is not None and not head else self._find(head, base)
        place = f"{found}#{preset}" if preset else str(found)
        if place in chain:
            raise _bad(place, "it extends itself", "take it out of `extends`")
        if len(chain) >= DEPTH_MAX:
            raise _bad(place, f"more than {DEPTH_MAX} policies extend one another")
        key = (found, preset)
        if key not in self._done:
            if len(self._done) >= PARTS_MAX:
                raise _bad(place, f"it is made of more than {PARTS_MAX} policies")
            table = self._part(found, preset, reference)
            policy = self._policy(table, found, place, (*chain, place))
            try:
                Rules.of(policy)
            except InvalidInput as cause:
                raise _bad(place, cause.message, cause.hint) from cause
            self._done[key] = policy
        return self._done[key]

    def _find(self, head: str, base: Path) -> Path:
        if _is_path(head):
            path = base / Path(head).expanduser()
            if not path.exists():
                raise error("policy_not_found", f"{path}: no such file")
            return path.resolve()
        if _NAME.fullmatch(head):
            for suffix in _SUFFIXES:
                path = self._directory / f"{head}{suffix}"
                if path.exists():
                    return path.resolve()
        raise error(
            "policy_not_found",
            f"no policy {head[:80]!r}",
            hint=f"see `hutch policy ls`; a file is given by its path, or put in {self._directory}",
        )

    def _part(self, path: Path, preset: str, reference: str) -> dict[str, Any]:
        """Return the table that a reference means in its file."""
        table = self._table(path)
        presets = table.get("presets", {})
        if not isinstance(presets, dict):
            raise _bad(path, "`presets` is no table")
        names = ", ".join(f"{reference.partition('#')[0]}#{name}" for name in [*presets][:10])
        if preset:
            if not isinstance(presets.get(preset), dict):
                hint = f"it has {names}" if names else "it has none"
                raise error("policy_not_found", f"{path}: no preset {preset[:80]!r}", hint=hint)
            return dict(presets[preset])
        rest = {key: value for key, value in table.items() if key != "presets"}
        if presets and not rest:
            raise _bad(path, "it holds only presets", f"give one of {names}")
        return rest

    def _policy(
        self, table: Mapping[str, Any], path: Path, place: str, chain: tuple[str, ...]
    ) -> NetworkPolicy:
        unknown = sorted(set(table) - set(_FIELDS))
        if unknown:
            raise _bad(place, f"no field {unknown[0]!r}", f"the fields are {', '.join(_FIELDS)}")
        extends = table.get("extends", [])
        extends = [extends] if isinstance(extends, str) else _listed(place, "extends", extends, str)
        mode = _mode(place, table.get("mode"))
        if not extends and mode is None:
            raise _bad(
                place,
                "it has neither `mode` nor `extends`",
                'begin it with mode = "deny", or "public"',
            )
        policy: NetworkPolicy | None = None
        for reference in dict.fromkeys(extends):
            part = self.load(reference, path.parent, path, chain)
            if policy is None:
                policy = replace(part, preset=None)
            else:
                policy = extended(
                    policy,
                    mode=part.mode,
                    allow=part.allow,
                    deny=part.deny,
                    allow_host=part.allow_host,
                    allow_lan=policy.allow_lan or part.allow_lan,
                )
        allow_lan = table.get("allow_lan")
        if allow_lan is not None and not isinstance(allow_lan, bool):
            raise _bad(place, "`allow_lan` is neither true nor false")
        return extended(
            policy or NetworkPolicy(),
            mode=mode,
            allow=_listed(place, "allow", table.get("allow", []), str),
            deny=_listed(place, "deny", table.get("deny", []), str),
            allow_host=_listed(place, "allow_host", table.get("allow_host", []), int),
            allow_lan=allow_lan,
        )

    def _table(self, path: Path) -> dict[str, Any]:
        if path not in self._tables:
            self._tables[path] = _read(path)
        return self._tables[path]


def _listed(place: str, field: str, value: Any, kind: type[_T]) -> list[_T]:
    if isinstance(value, list) and all(type(item) is kind for item in value):
        return value
    what = "texts" if kind is str else "numbers"
    raise _bad(place, f"`{field}` is no list of {what}")


def _mode(place: str, value: Any) -> NetworkMode | None:
    if value is None:
        return None
    if isinstance(value, str) and value in set(NetworkMode):
        return NetworkMode(value)
    raise _bad(place, f"{str(value)[:40]!r} is no mode", f"give one of {', '.join(NetworkMode)}")


def _read(path: Path) -> dict[str, Any]:
    """Return what a file holds. Raises InvalidInput (bad_policy)."""
    try:
        with open(
            path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
        ) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _bad(path, "it is no file")
            data = file.read(FILE_MAX + 1)
    except OSError as cause:
        raise _bad(path, f"it cannot be read: {cause.strerror}") from cause
    if len(data) > FILE_MAX:
        raise _bad(path, f"it is larger than {FILE_MAX >> 20} MiB")
    try:
        text = data.decode()
        if path.suffix == ".json":
            table = json.loads(text, object_pairs_hook=_unique)
        else:
            table = tomllib.loads(text)
    except (ValueError, RecursionError) as cause:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise _bad(path, f"it is no {kind}: {str(cause)[:200]}") from cause
    if not isinstance(table, dict):
        raise _bad(path, "it holds no object of a policy's fields")
    return table


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a field is given twice")
    return table

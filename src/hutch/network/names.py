"""Names of hosts: the one normaliser, and what is known of a name without asking anybody.

Rules, DNS questions, server names of TLS and Host headers all pass `normal`, so that no spelling of
a name escapes a rule. What is an address in any notation is no name. Knows no policy.
"""

import re
from collections.abc import Collection, Iterator

import idna

HOST_NAME = "host.hutch"
"""What guests call the host's loopback."""

NAME_MAX = 253
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What RFC 6761 and its successors keep for other uses, what ICANN delegates to nobody because
# networks use it inside, and what routers make up. None of them may be asked for outside.
_INTERNAL = _words(
    "alt corp domain home home.arpa hutch internal intranet invalid ipv4only.arpa lan"
    " local localdomain localhost mail onion private resolver.arpa service.arpa test"
    " workgroup"
)

# Whose hosts serve many tenants behind equal addresses and certificates: a name allowed there may
# serve as a way to the others.
_SHARED = _words(
    "akamaiedge.net akamaihd.net akamaized.net amazonaws.com amplifyapp.com appspot.com"
    " azureedge.net azurefd.net azurewebsites.net b-cdn.net cdn77.org cloudflarestorage.com"
    " cloudfront.net cloudfunctions.net core.windows.net deno.dev digitaloceanspaces.com"
    " edgekey.net edgesuite.net fastly.net fastlylb.net firebaseapp.com fly.dev github.io"
    " githubusercontent.com gitlab.io googleapis.com googleusercontent.com herokuapp.com"
    " netlify.app ngrok-free.app ngrok.app ngrok.io onrender.com pages.dev r2.dev railway.app"
    " render.com run.app storage.googleapis.com stackpathdns.com supabase.co trafficmanager.net"
    " trycloudflare.com vercel.app web.app workers.dev wixsite.com"
)

# Second levels under which registries of countries sell names.
_REGISTRY_LEVELS = _words("ac co com edu gob gov gv ltd me mil ne net nhs nom or org sch")


def normal(text: str) -> str:
    """Return the one spelling of a name: lower case, A-labels, no dot at the end.

    Letters, digits, hyphens and underscores are allowed, labels of 1 to 63, 253 in all. Raises
    ValueError for all else, addresses in any notation among it.
    """
    if len(text) > NAME_MAX + 1:
        raise ValueError("it is too long")
    name = text.lower() if text.isascii() else _to_ascii(text)
    name = name.removesuffix(".")
    labels = name.split(".")
    if not all(map(_LABEL.fullmatch, labels)):
        raise ValueError(_wrong(labels))
    if len(name) > NAME_MAX:
        raise ValueError("it is too long")
    if _NUMBER.fullmatch(labels[-1]):
        raise ValueError("it is an address")
    return name


def _to_ascii(text: str) -> str:
    """Return a name with its labels in ASCII (UTS 46, not transitional, and IDNA 2008)."""
    try:
        mapped = idna.uts46_remap(text, std3_rules=False, transitional=False)
        labels = mapped.replace("\u3002", ".").split(".")
        return ".".join(
            label if label.isascii() else idna.alabel(label).decode() for label in labels
        ).lower()
    except (idna.IDNAError, UnicodeError) as cause:
        raise ValueError("it has characters that no name has") from cause


def _wrong(labels: list[str]) -> str:
    if labels == [""]:
        return "it is empty"
    if "" in labels:
        return "it has an empty label"
    if any(len(label) > 63 for label in labels):
        return "it has a label of more than 63 characters"
    return "it has characters that no name has, or a hyphen at a label's edge"


def suffixes(name: str) -> Iterator[str]:
    """Yield what a normal name lies under, the nearest first; not the name itself."""
    start = name.find(".") + 1
    while start:
        yield name[start:]
        start = name.find(".", start) + 1


def service_owner(name: str) -> str:
    """Return whose service a normal name like `_http._tcp.example.com` is for: `example.com`.

    Two such labels at most, as long as those of services are (RFC 6335). Another name is returned
    as it is.
    """
    for _ in range(2):
        label, _, rest = name.partition(".")
        if not rest or not label.startswith("_") or len(label) > 16:
            break
        name = rest
    return name


def is_internal(name: str, domains: Collection[str] = ()) -> bool:
    """Return whether only a private network can know a normal name.

    Those of special use, those of one label, and what is one of or lies under `domains` (normal,
    too; give a set): those that the host searches or routes elsewhere.
    """
    if "." not in name or name in _INTERNAL or name in domains:
        return True
    return any(above in _INTERNAL or above in domains for above in suffixes(name))


def is_shared_hosting(name: str) -> bool:
    """Return whether a normal name's servers are known to serve others' names as well."""
    return name in _SHARED or any(above in _SHARED for above in suffixes(name))


def is_registry_like(name: str) -> bool:
    """Return whether strangers can have names directly under a normal name: `com`, `co.uk`.

    A rule of thumb, for warnings: a top level, or one of the usual second levels of a country.
    """
    first, _, rest = name.partition(".")
    return not rest or (len(rest) == 2 and first in _REGISTRY_LEVELS) or name in _SHARED

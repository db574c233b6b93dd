"""The one tree of errors: API, CLI and SDK all speak it.

HutchError
├── InvalidInput        a request that can never work as it stands
├── NotFound            the named object does not exist
├── Conflict            it exists, but not in a state that allows this
├── NoCapacity          the host lacks memory, disk or another resource
├── Missing             something Hutch itself needs is not installed or set up
├── ImageError          a registry, archive or image is broken or refuses
├── EngineError         the virtual machine could not be started or died
├── GuestError          the agent in the VM refused, failed or did not answer
│   ├── CommandNotFound         exit code 127
│   └── CommandNotExecutable    exit code 126
└── DaemonError         the daemon cannot be reached, or is of another version

Each concrete error is a row of `CODES`: a stable code, its class, its HTTP status. The CLI exits
with 125 for each of them (126 and 127 where container tools do), and the SDK raises the same class
again on its side.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

EXIT_HUTCH = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127


class HutchError(Exception):
    """What failed, on which object, and what to do next.

    `code` is a key of `CODES`; `message` names the object; `hint` is the next step, in the
    imperative; `details` holds JSON values for programs. Raises KeyError for a code that is not in
    the table: codes are never made up.
    """

    exit_code: ClassVar[int] = EXIT_HUTCH

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = CODES[code].status
        self.message = message
        self.hint = hint
        self.details = dict(details or {})

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message

    def to_json(self) -> dict[str, Any]:
        """Return the error as the API sends it: `{code, message, hint, details}`."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "details": self.details,
        }


class InvalidInput(HutchError):
    """A request that can never work as it stands."""


class NotFound(HutchError):
    """The named object does not exist."""


class Conflict(HutchError):
    """The object exists, but not in a state that allows this."""


class NoCapacity(HutchError):
    """The host lacks memory, disk or another resource for it."""


class Missing(HutchError):
    """Something that Hutch itself needs is not installed or not set up."""


class ImageError(HutchError):
    """A registry, an archive or an image is broken or refuses."""


class EngineError(HutchError):
    """The virtual machine could not be started, or died."""


class GuestError(HutchError):
    """The agent in the VM refused, failed or did not answer."""


class CommandNotFound(GuestError):
    """The program does not exist in the sandbox (exit code 127)."""

    exit_code = EXIT_NOT_FOUND


class CommandNotExecutable(GuestError):
    """The program exists in the sandbox but cannot be executed (exit code 126)."""

    exit_code = EXIT_NOT_EXECUTABLE


class DaemonError(HutchError):
    """The daemon cannot be reached, failed, or is of another version."""


class ErrorRow(NamedTuple):
    """One row of the table: the class raised, the HTTP status, and what the code means."""

    # No dataclass, which would cost each `hutch exec` 8 ms for the import alone.

    cls: type[HutchError]
    status: int
    meaning: str


CODES: dict[str, ErrorRow] = {
    # input
    "bad_request": ErrorRow(
        InvalidInput, 400, "a field of the request is missing or has a wrong value"
    ),
    "bad_name": ErrorRow(
        InvalidInput, 400, "a sandbox name has characters or a length that are not allowed"
    ),
    "bad_size": ErrorRow(InvalidInput, 400, "a CPU, memory or disk size that cannot be"),
    "bad_path": ErrorRow(InvalidInput, 400, "a path that is not absolute or leaves its directory"),
    "bad_reference": ErrorRow(InvalidInput, 400, "an image reference that cannot be parsed"),
    "bad_setting": ErrorRow(InvalidInput, 400, "a setting with a wrong name or value"),
    "bad_command": ErrorRow(InvalidInput, 400, "no command to run, neither given nor in the image"),
    "bad_policy": ErrorRow(
        InvalidInput, 400, "a network policy has a rule that cannot be, or its file is broken"
    ),
    "bad_port": ErrorRow(InvalidInput, 400, "a port that cannot be published"),
    # objects
    "policy_not_found": ErrorRow(NotFound, 404, "no policy of that name, nor such a file"),
    "sandbox_not_found": ErrorRow(NotFound, 404, "no sandbox of that name or id"),
    "exec_not_found": ErrorRow(NotFound, 404, "no such exec in that sandbox"),
    "image_not_found": ErrorRow(NotFound, 404, "no such image, neither here nor in its registry"),
    "kernel_not_found": ErrorRow(NotFound, 404, "no kernel of that name in the store"),
    "template_not_found": ErrorRow(NotFound, 404, "no template of that id"),
    "snapshot_not_found": ErrorRow(NotFound, 404, "no snapshot of that name or id"),
    "snapshot_damaged": ErrorRow(
        Conflict, 409, "a snapshot's files are missing, truncated or changed"
    ),
    "snapshot_incompatible": ErrorRow(
        Conflict, 409, "a snapshot was made on a host, or by a version, that does not fit"
    ),
    "checkpoint_not_found": ErrorRow(NotFound, 404, "the sandbox has no such checkpoint"),
    "wrong_key": ErrorRow(
        InvalidInput, 403, "a snapshot is encrypted, with another key than the one given, if any"
    ),
    "pool_not_found": ErrorRow(NotFound, 404, "no pool of that image"),
    "path_not_found": ErrorRow(NotFound, 404, "no such file or directory in the sandbox"),
    "name_taken": ErrorRow(Conflict, 409, "another sandbox has that name"),
    "wrong_state": ErrorRow(Conflict, 409, "the sandbox is not in a state that allows this"),
    "sandbox_restored": ErrorRow(
        Conflict, 409, "the sandbox was put back to a checkpoint while this was under way"
    ),
    "in_use": ErrorRow(Conflict, 409, "the object is used by a sandbox"),
    "exec_taken": ErrorRow(Conflict, 409, "another client has attached to this exec"),
    "port_not_found": ErrorRow(NotFound, 404, "the sandbox does not publish that port"),
    "port_taken": ErrorRow(Conflict, 409, "something else listens on that port of the host"),
    # host
    "network_missing": ErrorRow(
        Missing, 424, "this host cannot have networks for sandboxes; `hutch doctor` says why"
    ),
    "network_failed": ErrorRow(
        EngineError, 500, "a process of the network does not answer, or the kernel refused"
    ),
    "no_capacity": ErrorRow(NoCapacity, 507, "the host lacks memory or disk for it"),
    "disk_full": ErrorRow(NoCapacity, 507, "a file system of the host is full"),
    "engine_missing": ErrorRow(Missing, 424, "QEMU is not installed"),
    "kernel_missing": ErrorRow(Missing, 424, "no kernel is in the store and none could be fetched"),
    "agent_missing": ErrorRow(Missing, 424, "this installation carries no guest agent"),
    "tool_missing": ErrorRow(
        Missing, 424, "a program of the host that this needs is not installed"
    ),
    # images
    "registry_denied": ErrorRow(
        ImageError, 401, "the registry refuses the credentials, or asks for some"
    ),
    "registry_failed": ErrorRow(
        ImageError, 502, "the registry cannot be reached or answers nonsense"
    ),
    "digest_mismatch": ErrorRow(
        ImageError, 502, "content does not have the digest that it was asked for by"
    ),
    "bad_image": ErrorRow(
        ImageError, 422, "an image or archive is malformed, truncated or hostile"
    ),
    "no_platform": ErrorRow(ImageError, 422, "the image has no variant for this machine"),
    "build_failed": ErrorRow(ImageError, 422, "an image could not be built"),
    # engine
    "engine_failed": ErrorRow(EngineError, 500, "QEMU could not be started or broke off"),
    "boot_failed": ErrorRow(EngineError, 500, "the VM did not come up in time"),
    "sandbox_died": ErrorRow(EngineError, 500, "the VM ended while this was under way"),
    "parked_unusable": ErrorRow(
        EngineError, 500, "a parked sandbox cannot go on from its memory; it stays parked"
    ),
    # guest
    "guest_timeout": ErrorRow(GuestError, 504, "the agent did not answer in time"),
    "guest_protocol": ErrorRow(
        GuestError, 502, "the guest sent something that the protocol forbids"
    ),
    "guest_failed": ErrorRow(GuestError, 500, "the agent reported a failure"),
    "guest_refused": ErrorRow(
        GuestError, 422, "the guest's file system or network refused the operation"
    ),
    "command_not_found": ErrorRow(
        CommandNotFound, 422, "the program does not exist in the sandbox"
    ),
    "command_not_executable": ErrorRow(CommandNotExecutable, 422, "the program cannot be executed"),
    "no_such_user": ErrorRow(GuestError, 422, "the image has no such user or group"),
    # daemon
    "daemon_unreachable": ErrorRow(
        DaemonError, 503, "the daemon does not answer and could not be started"
    ),
    "daemon_version": ErrorRow(
        DaemonError, 409, "the daemon is of another version and has work to do"
    ),
    "forbidden": ErrorRow(DaemonError, 403, "the caller may not do that"),
    "cancelled": ErrorRow(DaemonError, 499, "the request was cancelled"),
    "internal": ErrorRow(DaemonError, 500, "a bug in Hutch; the daemon's log has the trace"),
}


def error(
    code: str, message: str, *, hint: str | None = None, details: Mapping[str, Any] | None = None
) -> HutchError:
    """Return (not raise) an error of the class that the table gives for `code`."""
    return CODES[code].cls(code, message, hint=hint, details=details)


def from_json(body: Mapping[str, Any]) -> HutchError:
    """Return the error that `HutchError.to_json` gave.

    An unknown code becomes `internal`, keeping its text.
    """
    code = str(body.get("code", "internal"))
    message = str(body.get("message") or code)
    details = body.get("details")
    return error(
        code if code in CODES else "internal",
        message,
        hint=body.get("hint"),
        details=details if isinstance(details, Mapping) else None,
    )

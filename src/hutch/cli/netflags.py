"""The network flags of `hutch run` and its like, from values of the command line to a policy.

Plain JSON here, as on all of the hot path, of which this is part only where such flags are given.
"""

from typing import TYPE_CHECKING, Any

from hutch.errors import error

if TYPE_CHECKING:
    from hutch.cli.app import App

POLICY_DIRECTORY = "policies"
"""Where in the home those policies are that have a name."""


def policy_of(app: "App", options: dict[str, Any]) -> dict[str, Any] | None:
    """Return the policy that flags ask for, as JSON; None without any.

    What is allowed with no word on the rest is all that is allowed. Raises bad_policy,
    policy_not_found.
    """
    rules = rules_of(options)
    named = options["policy"]
    mode = rules.pop("mode")
    if not (named or mode or any(rules.values())):
        return None
    policy = _named(app, named) if named else _fresh(app, narrow=bool(rules["allow"]))
    for key in ("allow", "deny", "allow_host"):
        policy[key] = [*policy[key], *(rule for rule in rules[key] if rule not in policy[key])]
    policy["allow_lan"] = policy["allow_lan"] or rules["allow_lan"]
    if mode is not None:
        policy["mode"] = mode
    if mode or any(rules.values()):
        policy["preset"] = None  # it is more than what the name stands for
    return policy


def rules_of(options: dict[str, Any]) -> dict[str, Any]:
    """Return the mode and the rules of flags, in whatever spelling; a mode of None is not given."""
    mode, allow = options["net"], [*options["allow"]]
    allow += [*options["allowed_domain"], *options["allowed_cidr"]]
    text = options["net_policy"]
    if text is not None:
        word, colon, names = text.partition(":")
        if word == "allow" and names:
            allow += [name.strip() for name in names.split(",") if name.strip()]
            mode = mode or "deny"
        elif word == "deny" and not colon:
            mode = mode or "deny"
        else:
            raise error(
                "bad_policy",
                f"{text!r} is no policy",
                hint="write deny, or allow:NAME,NAME; --net and --allow can say more",
            )
    return {
        "mode": mode,
        "allow": allow,
        "deny": [*options["deny"], *options["denied_cidr"]],
        "allow_host": [*options["allow_host"]],
        "allow_lan": options["allow_lan"],
    }


def _fresh(app: "App", *, narrow: bool) -> dict[str, Any]:
    mode = "deny" if narrow else app.settings.network
    return {"mode": mode, "allow": [], "deny": [], "allow_host": [], "allow_lan": False}


def _named(app: "App", reference: str) -> dict[str, Any]:
    from hutch.models import to_json
    from hutch.network.presets import load

    policy: dict[str, Any] = to_json(load(reference, app.settings.home / POLICY_DIRECTORY))
    return policy

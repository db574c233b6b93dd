"""What is made ahead of sandboxes, templates and pools, is made for requests like a given one.

From such a request to the recipe that all those sandboxes have in common. It must not know what is
made of it.
"""

from dataclasses import dataclass

from hutch.errors import HutchError, error
from hutch.images.base import Report
from hutch.models import SandboxInfo, SandboxSpec, timestamp
from hutch.service.machine import Booter
from hutch.service.parts import Parts
from hutch.service.policies import policy_of
from hutch.service.recipe import CPUS, MEMORY, Recipe
from hutch.service.spec import check_request, resolve
from hutch.settings import MIB


@dataclass(frozen=True, slots=True)
class Ahead:
    """A sandbox that nobody has asked for yet, without id and name, and what it is made of."""

    info: SandboxInfo
    recipe: Recipe


async def look_ahead(parts: Parts, booter: Booter, spec: SandboxSpec, report: Report) -> Ahead:
    """Return what sandboxes like `spec` have in common; their image is pulled if need be.

    Raises bad_size or bad_setting where they boot cold, and what the making of a sandbox raises.
    """
    check_request(spec, parts.settings, parts.host)
    network = policy_of(spec, parts.settings, parts.plugs.ability)
    image = await parts.images.ensure(spec.image, spec.pull, report)
    await parts.kernels.ensure(spec.kernel or parts.settings.kernel or None, report)
    info = resolve(
        spec,
        image,
        parts.settings,
        parts.host,
        sandbox_id="",
        name="ahead",
        created_at=timestamp(),
        network=network,
    )
    recipe = await booter.recipe(info)
    if not booter.has_template(recipe):
        raise _impossible(templates=parts.settings.templates)
    return Ahead(info, recipe)


def _impossible(*, templates: bool) -> HutchError:
    if not templates:
        return error(
            "bad_setting", "templates are switched off", hint="set the setting templates to yes"
        )
    cpus = ", ".join(str(number) for number in sorted(CPUS))
    memory = ", ".join(f"{size // MIB}m" for size in sorted(MEMORY))
    return error(
        "bad_size",
        "there are no templates for sandboxes of that size, which boot cold",
        hint=f"use {cpus} CPUs and {memory} of memory",
    )

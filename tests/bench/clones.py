"""Starts from a template: as a client sees them, and the same by hand."""

import time
from dataclasses import dataclass, field

from tests.bench import bare
from tests.bench.bare import Recipe, Template
from tests.bench.boots import cold
from tests.bench.lab import Lab, Session
from tests.bench.lives import MACHINE_ID, begin
from tests.bench.samples import Measured, Series, alternate, part_of, ratio

_ANSWER_PART, _OUTPUT_PART = 15, 8
_BY_HAND_LIMIT = 1.3


@dataclass(slots=True)
class _Clones:
    """Takes samples of clones, to their answer; the times to an output are kept beside."""

    lab: Lab
    session: Session
    recipe: Recipe
    template: Template
    outputs: list[float] = field(default_factory=list)
    hand_outputs: list[float] = field(default_factory=list)

    def hutch(self) -> float:
        """Have the daemon make a sandbox; return the time to its reply."""
        begun = begin(self.session, self.lab.spec(template=True))
        assert begun.info.template is not None, begun
        self.outputs.append(begun.output)
        return begun.reply

    def hand(self) -> float:
        """Start a clone by hand and send it its identity; return the time of both."""
        with bare.clone(self.recipe, self.template) as machine:
            started = time.monotonic()
            own = machine.identify()
            answered = time.monotonic()
            assert machine.agent.run("cat", MACHINE_ID) == (0, own.encode() + b"\n")
            ended = time.monotonic()
        self.hand_outputs.append(machine.seconds + ended - started)
        return machine.seconds + answered - started


def from_template(lab: Lab) -> Measured:
    """Measure starts from a template against cold boots, and against the same by hand."""
    with lab.sandbox(template=True) as like:
        recipe = lab.recipe(like)
        assert like.template is not None, like
        directory = lab.hutch.home / "templates" / like.template
        with bare.template(directory, like) as template, lab.session() as session:
            with bare.clone(recipe, template) as machine:
                bare.assert_same_command_line(machine, like)
            boots = cold(lab, recipe)
            clones = _Clones(lab, session, recipe, template)
            warm = lab.rounds(2, 0)
            takers = {"hand": clones.hand, "hutch": clones.hutch}
            found = alternate(takers, lab.rounds(15, 2), warm=warm)
    hand = Series("by hand: QMP sequence and identity, to its answer", "s", found["hand"])
    reply = Series("hutch, request to reply: it runs and has its identity", "s", found["hutch"])
    hand_output = Series("by hand, to a first command's output", "s", clones.hand_outputs[warm:])
    output = Series("hutch, request to a first command's output", "s", clones.outputs[warm:])
    return Measured(
        "Start from a template",
        [boots, hand, reply, hand_output, output],
        [
            part_of("template to the agent's answer, of a cold boot", reply, boots, _ANSWER_PART),
            ratio("template to the answer, of the same by hand", reply, hand, _BY_HAND_LIMIT),
            part_of("template to a first output, of a cold boot", output, boots, _OUTPUT_PART),
        ],
        "The daemon's figure has image lookup, records, the clone's disk and the reply in it; by "
        "hand the disk is made before. The first command runs code that its emulator has not "
        "translated yet. The two command lines were compared, as for the cold boot.",
    )

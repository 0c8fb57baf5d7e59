"""Captions of the clips that mini-sd is trained on, made from their labels, in many wordings.

Section 4.2 trains on captioned videos of the web. MINI: here a caption is a sentence about labels;
some wordings are held out, and figures are measured with these.
"""

from __future__ import annotations

from dataclasses import dataclass

# the people of `actions` by number; the last one is never named: chapter 11 introduces this person
PEOPLE = ("Adam", "Bella", "Carl", "Dora", "Emil", "Fiona", "George", "Hanna")
NUMBERS = ("no", "one", "two", "three", "four")
MOST_CARS = len(NUMBERS) - 1

# {name}: who; each action in several wordings, the last two held out
ACTIONS = (
    ("{who} waves one hand", "{who} is waving with one hand", "{who} waves with one arm",
     "a video of {who} waving one hand", "{who} raises one arm and waves",
     "{who} is waving one arm", "a clip in which {who} waves with one hand"),
    ("{who} waves two hands", "{who} is waving with both hands", "{who} waves with two arms",
     "a video of {who} waving both hands", "{who} raises both arms and waves",
     "{who} is waving two arms", "a clip in which {who} waves with both hands"),
    ("{who} does jumping jacks", "{who} is jumping up and down", "{who} jumps with arms and legs "
     "apart", "a video of {who} doing jumping jacks", "{who} does exercises: jumping jacks",
     "{who} is doing jumping jacks", "a clip in which {who} is jumping"),
    ("{who} bends down", "{who} is bending down to the ground", "{who} bends and touches the "
     "ground", "a video of {who} bending down", "{who} bends forward and comes up again",
     "{who} is bending forward", "a clip in which {who} bends down"),
)
SIGNS = ('{who} signs "{sign}"', 'the sign "{sign}" in sign language', '{who} makes the sign for '
         '"{sign}"', 'a video of the sign "{sign}"', 'somebody says "{sign}" in sign language',
         'a clip of the sign for "{sign}"', '{who} says "{sign}" in signs')
ROADS = ("a road {light} with {cars}", "driving {light}, {cars}", "{cars} on a road {light}",
         "a street {light}, {cars} in sight", "a video of driving {light} with {cars}",
         "a road trip {light} with {cars}", "{cars} on the street {light}")
LIGHTS = (("by day", "in daylight"), ("at night", "in the dark"))
HELD_OUT_WORDINGS = 2


@dataclass(frozen=True)
class Facts:
    """What a caption may say of a frame: of `actions` action and person, of `signs` sign, of
    `driving` night and cars. None: nothing of that kind."""

    action: int | None = None
    person: int | None = None
    sign: str | None = None
    night: bool | None = None
    cars: int | None = None


def captions(facts: Facts, held_out: bool = False, name: str | None = None) -> list[str]:
    """All captions of a frame: in the wordings for training, or in those held out.

    name: of the person, in place of that in PEOPLE. A person without a name is "a person". Raises
    ValueError for facts that no caption says.
    """
    if facts.action is not None:
        who = [name] if name else _names(facts.person, held_out)
        return [text.format(who=one) for text in _wordings(ACTIONS[facts.action], held_out)
                for one in who]
    if facts.sign is not None:
        return [text.format(who="a person", sign=facts.sign)
                for text in _wordings(SIGNS, held_out)]
    if facts.cars is None:
        raise ValueError(f"nothing to say about {facts}")
    lights = LIGHTS[bool(facts.night)]
    return [text.format(light=light, cars=_cars(facts.cars)) for light in lights
            for text in _wordings(ROADS, held_out)]


def _wordings(all_of_them: tuple[str, ...], held_out: bool) -> tuple[str, ...]:
    return all_of_them[-HELD_OUT_WORDINGS:] if held_out else all_of_them[:-HELD_OUT_WORDINGS]


def _names(person: int | None, held_out: bool) -> list[str]:
    """Training also says "a person", so that the words mean all of them."""
    if person is None or person >= len(PEOPLE):
        return ["a person"]
    return [PEOPLE[person]] if held_out else [PEOPLE[person], PEOPLE[person], "a person"]


def _cars(number: int) -> str:
    number = min(number, MOST_CARS)
    word = NUMBERS[number] + (" or more" if number == MOST_CARS else "")
    return f"{word} car" if number == 1 else f"{word} cars"

"""What a worker is called to which nobody gave a name: two words that follow from its id, a digest of its key.

Decides the words. Holds always: the same id has the same name everywhere, and the name says nothing about the machine
or the person. Names are for reading, not for telling workers apart: of 300 workers two may well share one.
"""

from __future__ import annotations

import hashlib

_QUALITIES = """
able agile amber ample apt ashen autumn azure balmy bold brave breezy bright brisk bronze calm candid cedar cheery civil
clear clever cobalt copper coral cosy crisp curious dapper daring dawn deft dewy eager early earnest easy ebony elder
fabled fair faithful fern fine firm fleet fond frank free fresh frosty gentle gilded glad gleaming golden good grand
green hale handy happy hardy hazel hearty helpful hidden honest humble indigo iron ivory jade jolly jovial keen kind
lasting leafy level light lilac linen lively loyal lucid lucky lunar maple mellow merry mild mindful misty modest mossy
neat nimble noble oaken ochre olive open patient pearly placid plain plucky polite prime proud quick quiet ready ripe
robust rosy ruby rustic sage sandy scarlet serene sharp shiny silent silken silver simple sincere smooth snowy solar
solid sound spry stable starry steady still stout sunny supple sure swift tall tawny teal thrifty tidy timely topaz true
trusty upbeat velvet vivid warm wary willing windy wise witty wooden woven young zesty
"""
_THINGS = """
acorn adze alder anchor anvil apple ash aspen auger awl badger barley barn basket beacon bear beaver bee beech bell
bellows birch bison bobbin bramble brook broom buckle burrow cairn candle canoe carder cart chestnut chisel cider
clover cobbler crane cricket crow curlew cypress daisy deer dove drum dune eagle egret elk elm falcon fennel fern
ferry fiddle finch fir flax forge fox frog gable garden gate glade goose granary grove gull hammer harbor hare harvest
hawk hayloft hazel hearth hedge hen heron hive holly hoop ibis inlet iris ivy jay joist juniper kestrel kettle kiln
ladder lantern larch lark ledger lichen lily linden linnet loft loom lynx mallet maple marten martin meadow mill
millet mole moose moth nettle newt nutmeg oak oat orchard oriole osprey otter owl oxbow paddle partridge pear pebble
pegs pine plane plough plover plum pond poplar prairie puffin pulley quail quarry quill rabbit rafter raven reed robin
rook rope rowan rudder rye saddle sail saw sawmill sedge shed shingle sickle silo sparrow spindle spruce squirrel
stable starling stile stork stream swallow swan swift teal thatch thimble thistle thrush timber toad tower trellis
trout trowel tulip turtle walnut weaver wheat wheel willow wren yarrow yew
"""
_FIRST, _SECOND = _QUALITIES.split(), _THINGS.split()


def pseudonym(worker: str) -> str:
    """As `amber-otter`, one word on a command line; of any text, so that ids in tests and simulations have one, too."""
    digest = hashlib.sha256(b"barnraise-pseudonym-v1" + worker.encode()).digest()
    first, second = int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")
    return f"{_FIRST[first % len(_FIRST)]}-{_SECOND[second % len(_SECOND)]}"

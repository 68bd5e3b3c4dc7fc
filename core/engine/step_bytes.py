"""Bytes of what surrounds a step program: inputs and state by slot, the sampler, recorded graphs.

T tokens · N sequences, and as many slots · R rows of logits · V vocabulary · L tokens of a sequence · P blocks of one.
"""

from __future__ import annotations

import math
from itertools import takewhile

from bestiary.core.engine.network import Network
from bestiary.core.program.shapes import Sizes
from bestiary.core.runtime.exact_rows import elements_at_a_time
from bestiary.core.runtime.graphs import NARROWEST, batch_sizes
from bestiary.core.runtime.inputs import table_width
from bestiary.core.runtime.logprobs import ROWS_AT_A_TIME

_INT64, _INT32 = 8, 4
# Of a slot's sampling parameters: six fp64 numbers, top_k and the seed.
_PARAMS = 8 * 8
# Whether a penalized request has had a token, and how often.
_COUNTED = 1 + 4
# For each logit of the requests that sample together: copies in fp32 and fp64 for penalties, top-p and the draw.
_SAMPLED = 56
# For each logit of the rows whose log-probabilities are made at a time: these, and which are larger, as bool and int64.
_VALUE, _RANKED = 4, 1 + 8
# For each logit of those rows that are summed and ordered at a time.
_ORDERED = 32
# A launch in a recorded graph: the node's parameters and what the driver keeps of it.
_GRAPH_NODE = 4096
# Launches by which a graph makes its own inputs from the state: so many, and so many for each cache group.
_INPUT_NODES = (16, 12)


def input_bytes(network: Network, sizes: Sizes, length: int) -> int:
    """A step's inputs, the state by slot, and on a processor the host's own tokens of each slot."""
    tokens, sequences, rows, _ = sizes
    groups, width = len(network.program.groups), table_width(length, network.geometry.block_size)
    slots = sequences + 1  # padding has one
    step = _INT64 * (4 * tokens + rows + sequences + groups * tokens + max(tokens, slots))
    step += _INT32 * (slots + sequences + groups * sequences * width)
    state = slots * (3 * _INT64 + groups * width * _INT32 + _PARAMS)
    host = sequences * (length + 1) * _INT32 if network.target.device.type == "cpu" else 0
    return step + state + host


def sampler_bytes(network: Network, sizes: Sizes) -> int:
    """The counts of as many penalized requests as there can be, and what choosing tokens or scoring a prompt takes."""
    if "logits" not in network.program.outputs:
        return 0
    vocabulary = network.vocab_size
    counts = 2 ** math.ceil(math.log2(sizes.sequences)) * _COUNTED
    scored = min(ROWS_AT_A_TIME, sizes.rows)
    ordered = min(scored, max(1, elements_at_a_time(network.target.device) // vocabulary))
    scoring = _VALUE * scored + max(_RANKED * scored, _ORDERED * ordered)
    return vocabulary * (counts + max(_SAMPLED * sizes.sequences, scoring))


def graph_bytes(network: Network, sequences: int, length: int, workspace: int) -> int:
    """An estimate of every graph that may be recorded: activations are the arena's, kernels share one pool, nodes add up."""
    blocks, widths = table_width(length, network.geometry.block_size), 1
    widths += sum(1 for _ in takewhile(lambda width: width < blocks, (NARROWEST << n for n in range(64))))
    fixed, of_group = _INPUT_NODES
    nodes = len(network.program.instructions) + fixed + of_group * len(network.program.groups)
    return workspace + len(batch_sizes(sequences)) * widths * nodes * _GRAPH_NODE

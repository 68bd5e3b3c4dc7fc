"""Rules of which quantization method each module gets."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestiary import ConfigError
from bestiary.core.quant.rules import Rule, choose, parse_rules

MODULES = {
    "layers.0.mlp.down.weight": ("layers.0.mlp.down", "model.layers.0.mlp.down_proj"),
    "layers.0.mlp.up.weight": ("layers.0.mlp.up", "model.layers.0.mlp.up_proj"),
    "layers.10.mlp.down.weight": ("layers.10.mlp.down", "model.layers.10.mlp.down_proj"),
    "embed.weight": ("embed", "model.embed_tokens"),
    "head.weight": ("head", "lm_head"),
}
DEFAULT = frozenset(name for name in MODULES if name.startswith("layers"))
WORD = st.text(string.ascii_lowercase + string.digits + "_", min_size=1, max_size=6)
PATTERN = st.text(string.ascii_lowercase + "_.*?0", min_size=1, max_size=8)
SPACE = st.sampled_from(["", " ", "  "])


def chosen(text: str) -> dict[str, str]:
    """Methods by parameter, with the options behind them."""
    found = choose(parse_rules(text), MODULES, DEFAULT, text)
    return {name: ":".join([rule.method, *(f"{n}={v}" for n, v in rule.options)]) for name, rule in found.items()}


@given(
    st.lists(
        st.tuples(st.none() | PATTERN, WORD, st.dictionaries(WORD, WORD, max_size=3)),
        min_size=1, max_size=4, unique_by=lambda rule: rule[0],
    ),
    SPACE,
)  # fmt: skip
def test_what_is_written_is_read(rules, space):
    def written(pattern, method, options):
        head = method if pattern is None else f"{pattern}{space}={space}{method}"
        return f"{space}:{space}".join([head, *(f"{name}{space}={space}{value}" for name, value in options.items())])

    text = f"{space},{space}".join(written(*rule) for rule in rules)
    assert parse_rules(text) == tuple(Rule(p, m, tuple(o.items())) for p, m, o in rules)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "rule '' names no method"),
        ("int4,", "rule '' names no method"),
        (",int4", "rule '' names no method"),
        (":group=32", "names no method"),
        ("head=", "names no method"),
        ("=int8", "names no module"),
        ("int4:group", "option 'group' of int4 has no value"),
        ("int4:group=", "option 'group=' of int4 has no value"),
        ("int4:=32", "option '=32' of int4 has no value"),
        ("int4:", "option '' of int4 has no value"),
        ("int4:group=32:group=64", "option group of int4 is there twice"),
        ("int4, int8", "a method for all modules is there twice"),
        ("head=int4, head=int8", "head= is there twice"),
    ],
)
def test_what_is_no_rule_is_refused(text, problem):
    with pytest.raises(ConfigError) as raised:
        parse_rules(text)
    assert raised.value.code == "E-BUILD-QUANTIZATION" and problem in str(raised.value)
    assert repr(text) in str(raised.value) and raised.value.expected


@pytest.mark.parametrize("text", [5, None, b"int4", ["int4"]])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(ConfigError, match="of the wrong type"):
        parse_rules(text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("int4", {"layers.0.mlp.down", "layers.0.mlp.up", "layers.10.mlp.down"}),
        ("*=int4", {"layers.0.mlp.down", "layers.0.mlp.up", "layers.10.mlp.down", "embed", "head"}),
        ("lm_head=int4", {"head"}),
        ("head=int4", {"head"}),
        ("down=int4", {"layers.0.mlp.down", "layers.10.mlp.down"}),
        ("*.down_proj=int4", {"layers.0.mlp.down", "layers.10.mlp.down"}),
        ("layers.0=int4", {"layers.0.mlp.down", "layers.0.mlp.up"}),
        ("model.layers.0.*=int4", {"layers.0.mlp.down", "layers.0.mlp.up"}),
        ("layers.1?=int4", {"layers.10.mlp.down"}),
        ("layers.[0-9].mlp=int4", {"layers.0.mlp.down", "layers.0.mlp.up"}),
    ],
)
def test_patterns_match_modules_by_either_name_and_what_lies_in_them(text, names):
    assert chosen(text) == {f"{name}.weight": "int4" for name in names}


def test_the_last_that_matches_counts_and_a_pattern_before_none():
    assert chosen("lm_head=int8, *.up=none, int4:group=32, layers.10=int8:group=64, layers.10.mlp.down=fp8") == {
        "layers.0.mlp.down.weight": "int4:group=32",
        "layers.10.mlp.down.weight": "fp8",
        "head.weight": "int8",
    }
    assert chosen("none") == {}


@given(
    st.lists(st.sampled_from(["down", "up", "layers.0", "layers.*", "head", "*"]), min_size=1, max_size=5, unique=True)
)
def test_a_module_has_the_last_rule_that_matches_it(patterns):
    rules = parse_rules(", ".join(f"{pattern}=m{number}" for number, pattern in enumerate(patterns)))
    found = choose(rules, MODULES, DEFAULT, "")
    for name, names in MODULES.items():
        matching = [rule for rule in rules if rule.matches(names, default=False)]
        assert found.get(name) == (matching[-1] if matching else None)


def test_a_rule_that_matches_nothing_names_what_is_near():
    with pytest.raises(
        ConfigError, match=r"a rule matches no module; found lm_haed, expected a module of the model: lm_head"
    ):
        chosen("int4, lm_haed=int8")
    with pytest.raises(ConfigError, match="a rule matches no module; found no weight"):
        choose(parse_rules("int4"), MODULES, frozenset(), "int4")

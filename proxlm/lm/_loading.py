"""Models that people have: loaded in one call, and saved in one."""

import importlib.util
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm._decoding.records import Prompts
from proxlm.lm import _architectures, _config_fields, _folder, _gguf, _parameters, _weight_files, pretrained
from proxlm.lm._chat import ChatTemplate
from proxlm.lm._config import ModelConfig, Params

if TYPE_CHECKING:
    import tokenizers

HUB = "hf:"
PATTERNS = ("*.json", "*.safetensors", "*.jinja")
OTHERS = ("*/*", "consolidated*")  # of other libraries, some of them the weights once more


class Pretrained(NamedTuple):
    """A language model with its tokenizer.

    Attributes:
      params: of the shape of `lm.init`.
      config: its `ModelConfig`.
      tokenizer: None where the file has none.
      stops: the tokens that end a text, ascending.
      template: of chats; None where the file has none.
    """

    params: Params
    config: ModelConfig
    tokenizer: "tokenizers.Tokenizer | None"
    stops: tuple[int, ...]
    template: ChatTemplate | None = None

    def chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """The tokens of a conversation, in the form that the model was trained on.

        Args:
          messages: each with a "role" and a "content".
          add_generation_prompt: whether they end with the beginning of the model's answer.
          variables: what else the template reads.

        Raises:
          ValueError: if there is no tokenizer or no template, or it refuses the messages.

        >>> model.chat([{"role": "user", "content": "Hello"}])  # doctest: +SKIP
        """
        if self.tokenizer is None or self.template is None:
            name = "tokenizer" if self.tokenizer is None else "template"
            raise _validation.invalid(name, None, "there", "Give one with model._replace.", "chat")
        text = self.template.render(messages, add_generation_prompt, **variables)
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def prompts(self, texts: Sequence[str]) -> Prompts:
        """The texts as rows of tokens [N, P], padded on the left, with their mask, for an actor.

        Raises:
          ValueError: if there is no tokenizer, or no text.

        >>> model.prompts(["2 + 3 =", "12 + 7 ="])  # doctest: +SKIP
        """
        if self.tokenizer is None:
            raise _validation.invalid("tokenizer", None, "there", "Give one with model._replace.", "prompts")
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        width = max(map(len, rows), default=0)
        if isinstance(texts, str) or not width:
            raise _validation.invalid("texts", texts, "a list of texts, not all empty", "", "prompts")
        tokens = jnp.array([[0] * (width - len(row)) + row for row in rows])
        return Prompts(tokens, jnp.array([[i >= width - len(row) for i in range(width)] for row in rows]))


def load(
    path: str | os.PathLike[str], *, param_dtype: str = "float32", sharding: pretrained.Sharding | None = None
) -> Pretrained:
    """Loads a language model with its tokenizer, chat template and stop tokens.

    Reads a folder as transformers saves it (config.json, model.safetensors or its shards, tokenizer.json),
    or a GGUF file, quantised or not. Architectures: Llama 1 to 3, Mistral, Qwen 2 and 3, SmolLM 2 and 3,
    Gemma 1 to 3 (text), Phi-3, OLMo 2, GPT-2, GPT-NeoX; in GGUF Llama, Qwen 2 and 3, Gemma 1 to 3.
    Whatever is not known is refused by the name of its field. Weights are read one at a time, cast
    and placed, each device's part by itself, so that memory holds little more than the result and no
    device or process more than its parts.

    Needs `pip install proxlm[models]`.

    Args:
      path: the folder or file; or "hf:organisation/name", or "hf:organisation/name@revision", of the
        Hugging Face Hub, through its cache.
      param_dtype: of the parameters: "float32", "bfloat16" or "float16". A file in bfloat16 gives the same
        float32 results kept so, in half the memory.
      sharding: (path of a parameter, shape) ↦ a `jax.sharding.Sharding`, or None for the default device.

    Raises:
      ValueError: if a file is damaged, or asks for what is not implemented.
      FileNotFoundError: if there is no such file, in the Hub's case neither in the cache nor the network.
      ImportError: if a package of the extra is not installed.

    >>> model = load("SmolLM2-135M-Instruct")  # doctest: +SKIP
    >>> prompt = model.chat([{"role": "user", "content": "Hello"}])  # doctest: +SKIP
    """
    _validation.one_of(pretrained.DTYPES, "load", param_dtype=param_dtype)
    for name in ("gguf", "safetensors", "tokenizers", "jinja2"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"load needs {name}: pip install proxlm[models]")
    place = _from_hub(os.fspath(path)) if str(path).startswith(HUB) else pathlib.Path(path)
    if not place.exists():
        raise FileNotFoundError(f"load: {path} does not exist; a model of the Hub is 'hf:organisation/name'")
    try:
        source = _folder.read(place) if place.is_dir() else _gguf.read(place)
        config = _config_fields.from_fields(source.fields, len(source.tensors))
        for stop in source.stops:
            if not _validation.is_integer(stop) or not 0 <= stop < config.vocab_size:
                raise _validation.invalid("eos_token_id", stop, f"a token below {config.vocab_size}")
        params = pretrained.read(source.tensors, config, source.layout, param_dtype, sharding)
    except ValueError as error:
        raise ValueError(f"load: {path}: {error}") from error
    stops = tuple(sorted(set(source.stops)))
    return Pretrained(params, config, source.tokenizer, stops, source.template)


def save(
    path: str | os.PathLike[str],
    model: Pretrained,
    *,
    dtype: str | None = None,
    max_shard_size: int = 5_000_000_000,
) -> None:
    """Saves a model in a folder that transformers opens, weights in safetensors, tokenizer included.

    The architecture is the first of transformers that has the config's switches.

    Args:
      path: of the folder, which is made; it may exist if it is empty.
      dtype: of the weights in the files: "float32", "bfloat16" or "float16"; None: as they are.
      max_shard_size: bytes in one file.

    Raises:
      ValueError: if no architecture has this combination of switches, or the folder is not empty.

    >>> save("fine-tuned", model, dtype="bfloat16")  # doctest: +SKIP
    """
    _validation.one_of((None, *pretrained.DTYPES), "save", dtype=dtype)
    _validation.integer(1, "save", max_shard_size=max_shard_size)
    if not isinstance(model, Pretrained):
        given = _validation.Verbatim(f"a {type(model).__name__}")
        raise _validation.invalid("model", given, "a Pretrained", "Make one with lm.Pretrained.", "save")
    folder = pathlib.Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise _validation.invalid("path", str(path), "an empty folder", "Name a new one.", "save")
    try:
        fields = _config_fields.to_fields(model.config)
        _parameters.check(model.params, model.config)
    except ValueError as error:
        raise ValueError(f"save: {error}") from error
    kind = dtype or str(jnp.dtype(jax.tree.leaves(model.params)[0].dtype))
    folder.mkdir(parents=True, exist_ok=True)
    layout = _architectures.ARCHITECTURES[fields["model_type"]].layout
    # safetensors writes the memory of an array as it lies there
    contiguous = lambda tensor: np.ascontiguousarray(tensor, jnp.dtype(kind))
    tensors = pretrained.write(model.params, model.config, layout)
    _weight_files.write(folder, ((name, contiguous(x)) for name, x in tensors), max_shard_size)
    fields |= {"dtype": kind, "torch_dtype": kind}
    _folder.write(folder, fields, model.tokenizer, model.template, model.stops)


def _from_hub(name: str) -> pathlib.Path:
    """The folder of a model of the Hugging Face Hub, fetched where it is not in the cache."""
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError("load needs huggingface_hub for 'hf:' names: pip install huggingface_hub") from None
    repository, _, revision = name.removeprefix(HUB).partition("@")
    try:
        found = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=list(PATTERNS), ignore_patterns=list(OTHERS)
        )
    except huggingface_hub.errors.HFValidationError as error:
        raise ValueError(f"load: {name}: {error}") from error
    except (huggingface_hub.errors.HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(
            f"load: {name} is neither in the cache of huggingface_hub nor to be had from the Hub "
            f"({type(error).__name__}). Where there is a network, `hf download {repository}` fetches "
            f"{', '.join(PATTERNS)}; then give the folder, or copy the cache"
        ) from error
    return pathlib.Path(found)

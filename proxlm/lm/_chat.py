"""Chat templates of tokenizers: messages into the text that a model was trained on, in a Jinja sandbox."""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class ChatTemplate(NamedTuple):
    """A template in Jinja, and the special tokens it may name.

    Attributes:
      source: the template.
      tokens: name ↦ token, such as "bos_token" ↦ "<s>".

    >>> template = ChatTemplate("{{ bos_token }}{{ messages[0]['content'] }}", {"bos_token": "<s>"})
    >>> template.render([{"role": "user", "content": "Hello"}])
    '<s>Hello'
    """

    source: str
    tokens: Mapping[str, str]

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The text of a conversation, as transformers renders it.

        The template is code of the model's maker. It runs in Jinja's immutable sandbox, which keeps it
        from everything but its own variables.

        Args:
          messages: each with a "role" and a "content".
          add_generation_prompt: whether the text ends with the beginning of the model's answer.
          variables: what else the template reads, such as tools.

        Raises:
          ValueError: if the template is invalid or refuses the messages.
          ImportError: if jinja2 is not installed.
        """
        try:
            import jinja2
        except ImportError:
            raise ImportError("A chat template needs jinja2: pip install proxlm[models]") from None
        names = {"tools": None, "documents": None, **self.tokens, **variables}
        try:
            template = _environment().from_string(self.source)
            return template.render(messages=messages, add_generation_prompt=add_generation_prompt, **names)
        except (jinja2.TemplateError, TypeError, RecursionError) as error:
            raise ValueError(f"chat: the template refuses the messages: {error}") from error


def _environment() -> Any:
    """Jinja with all that transformers gives to templates."""
    import jinja2
    from jinja2 import ext, sandbox

    class Generation(ext.Extension):
        """The block {% generation %}, which marks the model's own words."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            """Leaves the content of the block as it is."""
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    def fail(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda x, **options: json.dumps(x, **{"ensure_ascii": False, **options})
    environment.globals["raise_exception"] = fail
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment

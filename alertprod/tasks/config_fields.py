"""Task configuration made from the settings of the array core, so that no setting is written down twice.

A frozen dataclass of the core (``spatial_kernel_order``, its default, the docstring under it) becomes
a `lsst.pex.config.Config` class with the field's names (``spatialKernelOrder``) and histories.
"""

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lsst.pex.config import ChoiceField, Config, ConfigField, Field, FieldValidationError, ListField

from alertprod.errors import ConfigError


def make_config_class(
    name: str,
    settings: type[Any],
    *,
    renamed: Mapping[str, str] | None = None,
    omitted: Collection[str] = (),
) -> type[Config]:
    """Return a configuration class with one field per field of a dataclass.

    Parameters
    ----------
    name
        Name of the new class.
    settings
        A dataclass with a default for every field; tuples become lists, nested dataclasses nested configurations.
    renamed
        Names in the configuration that are not the camelCase of the dataclass's.
    omitted
        Fields of the dataclass that are not for this configuration to set; they are arguments of ``makeSettings``.

    Notes
    -----
    The new class has a method ``makeSettings(**omitted)`` that returns the dataclass, and ``validate()``
    fails where the dataclass refuses the values.
    """
    renamed = renamed or {}
    docs = _attribute_docstrings(settings)
    hints = typing.get_type_hints(settings)
    names: dict[str, str] = {}
    body: dict[str, Any] = {"__doc__": settings.__doc__, "__module__": settings.__module__}
    for field in dataclasses.fields(settings):
        if field.name in omitted:
            continue
        default = _default(field)
        camel = renamed.get(field.name, _camel_case(field.name))
        doc = docs.get(field.name, field.name)
        if dataclasses.is_dataclass(default):
            nested = make_config_class(type(default).__name__, type(default))
            body[camel] = ConfigField(doc=doc, dtype=nested)
        elif isinstance(default, tuple):
            item = type(default[0]) if default else str
            body[camel] = ListField(doc=doc, dtype=item, default=list(default))
        elif typing.get_origin(hints[field.name]) is typing.Literal:
            allowed = {str(choice): "" for choice in typing.get_args(hints[field.name])}
            body[camel] = ChoiceField(doc=doc, dtype=str, allowed=allowed, default=default, optional=False)
        else:
            kind = _scalar_type(hints[field.name], default)
            body[camel] = Field(doc=doc, dtype=kind, default=default, optional=default is None)
        names[camel] = field.name

    def make_settings(self: Any, **omitted_values: Any) -> Any:
        values = {snake: _plain(getattr(self, camel)) for camel, snake in names.items()}
        return settings(**values, **omitted_values)

    def validate(self: Any) -> None:
        Config.validate(self)
        try:
            make_settings(self)
        except (ConfigError, ValueError, KeyError) as error:
            at = getattr(error, "field", None)
            camel = next((c for c, snake in names.items() if snake == at), None) or find_culprit(self)
            raise FieldValidationError(self._fields[camel], self, _describe(error)) from error

    def find_culprit(self: Any) -> str:
        """Return the field that the dataclass refuses by itself, the first one where only several together are wrong."""
        for camel, snake in names.items():
            try:
                settings(**{snake: _plain(getattr(self, camel))})
            except (ConfigError, ValueError, KeyError):
                return camel
        return next(iter(names))

    body["makeSettings"] = make_settings
    body["validate"] = validate
    return type(Config)(name, (Config,), body)


def read_settings(pairs: Iterable[str], *, source: str) -> dict[str, Any]:
    """Read "name=value" words of a command line: numbers, lists, True, False and None as Python has them, else text.

    Raises
    ------
    ConfigError
        Raised if a word has no "="; `source` names the option.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or not name:
            raise ConfigError(source, pair, "NAME=VALUE is needed")
        try:
            settings[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            settings[name] = text
    return settings


def apply_overrides(config: Config, overrides: Mapping[str, Any], *, source: str) -> None:
    """Set fields by dotted names, ``subtract.al.kernel.AL.spatialKernelOrder``, in place, and validate the whole.

    Raises
    ------
    ConfigError
        Raised if a name leads nowhere or a value does not fit; `source` names the file.
    """
    set_fields(config, overrides, source=source)
    validate_config(config, source=source)


def set_fields(config: Config, overrides: Mapping[str, Any], *, source: str) -> None:
    """Set fields as `apply_overrides` does, and leave the whole unvalidated: more may be to come."""
    for name, value in overrides.items():
        *path, last = name.split(".")
        node: Any = config
        try:
            for part in path:
                node = _child(node, part)
            _set(node, last, value)
        except (AttributeError, KeyError, TypeError, FieldValidationError) as error:
            raise ConfigError(source, name, f"cannot be set to {value!r}: {_explain(error)}") from error


def validate_config(config: Config, *, source: str) -> None:
    """Validate a configuration.

    Raises
    ------
    ConfigError
        Raised if its fields contradict one another; `source` names the file.
    """
    try:
        config.validate()
    except FieldValidationError as error:
        # Named as an override would name it: subtract.al.mode, not subtract['al'].mode.
        raise ConfigError(source, re.sub(r"\['(\w+)'\]", r".\1", error.fullname), _explain(error)) from error
    except ValueError as error:  # a task's own validate may raise the plain kind
        raise ConfigError(source, type(config).__name__, _explain(error)) from error


def _set(node: Any, name: str, value: Any) -> None:
    if isinstance(node, Config):
        if name not in node._fields:
            raise AttributeError("no such field")
    elif name != "name":
        raise AttributeError(f"a choice has .name or one of {_choices(node)}")
    setattr(node, name, value)


def _child(node: Any, part: str) -> Any:
    """Follow one step: a field of a configuration, or a choice of a registry field."""
    if isinstance(node, Config):
        if part not in node._fields:
            raise AttributeError(f"there is no {part!r}")
        child = getattr(node, part)
        # A subtask's field holds the subtask's configuration.
        return child.value if isinstance(getattr(child, "value", None), Config) else child
    if part not in _choices(node):
        raise AttributeError(f"{part!r} is not one of {_choices(node)}")
    return node[part]


def _choices(node: Any) -> list[str]:
    if not hasattr(node, "types"):
        raise AttributeError("there is nothing below a plain value")
    return list(node.types)


def _explain(error: Exception) -> str:
    """Return what is wrong, without the places in the source that pex_config adds."""
    first = str(error).splitlines()[0]
    return first.partition("failed validation: ")[2] or first


def _describe(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"there is no {error.args[0]!r}"
    return str(getattr(error, "problem", error))


def _plain(value: Any) -> Any:
    """Return what the dataclass holds for a field's value."""
    if isinstance(value, Config):
        return value.makeSettings()
    return tuple(value) if hasattr(value, "append") else value


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    raise TypeError(f"{field.name} has no default")


def _scalar_type(hint: Any, default: Any) -> type:
    if default is not None:
        return type(default)
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return kinds[0] if kinds and isinstance(kinds[0], type) else str


def _camel_case(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _attribute_docstrings(cls: type[Any]) -> dict[str, str]:
    """Return the string under each field in the sources of a dataclass and of those that it derives from."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _own_docstrings(base)
    return docs


def _own_docstrings(cls: type[Any]) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    docs: dict[str, str] = {}
    for statement, following in itertools.pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[statement.target.id] = inspect.cleandoc(str(following.value.value))
    return docs

"""Checks a fork-join's input before anything is sent: Cerberus rules or a pydantic model. Hands out plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .errors import UsageError

__all__ = ["Schema"]


class Schema:
    """What the input of a fork-join must look like.

    Args:
        rules: Cerberus rules (a dict), a pydantic model (a class), or None: anything goes.
        owner: name of the fork-join, for messages.

    Attributes:
        names: the fields; None when any may be given.

    Raises:
        UsageError: the schema itself is wrong, or its library is missing.
    """

    def __init__(self, rules: Any, owner: str) -> None:
        self.rules, self.owner = rules, owner
        self.names: frozenset[str] | None = None
        self._model = isinstance(rules, type) and hasattr(rules, "model_validate")
        if self._model:
            if rules.model_config.get("extra") != "allow":
                self.names = frozenset(rules.model_fields)
        elif isinstance(rules, Mapping):
            self._validator()
            self.names = frozenset(rules)
        elif rules is not None:
            raise UsageError(f"{owner}.schema must be a dict of Cerberus rules or a pydantic model, not {rules!r:.60}")

    def _validator(self) -> Any:
        try:
            import cerberus
        except ImportError:
            message = f"{self.owner}.schema holds Cerberus rules: pip install 'nbparallel[forkjoin]'"
            raise UsageError(message) from None
        try:
            return cerberus.Validator(self.rules)
        except cerberus.SchemaError as error:
            raise UsageError(f"{self.owner}.schema is not a valid Cerberus schema: {error}") from None

    def check(self, inputs: Any, partial: bool = False) -> dict[str, Any]:
        """The input with defaults filled in.

        Args:
            inputs: what the user gave.
            partial: whether required fields may still be missing.

        Raises:
            UsageError: names each field that is wrong, and the rule.
        """
        if not isinstance(inputs, Mapping) or not all(isinstance(name, str) for name in inputs):
            raise UsageError(f"the input of {self.owner} must be a dict of names and values, not {inputs!r:.60}")
        if partial and self._model:
            unknown = sorted(set(inputs) - self.names) if self.names is not None else []
            self._refuse([f"{name}: unknown field" for name in unknown])
            return dict(inputs)
        if self._model:
            return self._check_model(inputs)
        return dict(inputs) if self.rules is None else self._check_rules(inputs, partial)

    def _check_model(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        import pydantic

        try:
            model = self.rules.model_validate(dict(inputs))
        except pydantic.ValidationError as error:
            found = error.errors(include_url=False, include_input=False)
            self._refuse([f"{'.'.join(map(str, e['loc'])) or 'input'}: {e['msg']} (rule: {e['type']})" for e in found])
            raise
        return dict(model)  # its values, not turned into plain data

    def _check_rules(self, inputs: Mapping[str, Any], partial: bool) -> dict[str, Any]:
        validator = self._validator()
        if not validator.validate(dict(inputs), update=partial):
            rules = dict(_rules(validator._errors))
            self._refuse(
                [
                    f"{'.'.join(map(str, path))}: {message}" + (f" (rule: {rules[path]})" if rules.get(path) else "")
                    for path, message in _messages(validator.errors, ())
                ]
            )
        if partial:
            return dict(inputs)  # defaults are filled in when the rest is there
        values: dict[str, Any] = validator.document
        return values

    def _refuse(self, found: list[str]) -> None:
        if found:
            raise UsageError(f"the input of {self.owner} is wrong: {'; '.join(found)}")


def _messages(errors: Mapping[Any, list[Any]], path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
    for field, found in errors.items():
        for entry in found:
            if isinstance(entry, Mapping):
                yield from _messages(entry, (*path, field))
            else:
                yield (*path, field), entry


def _rules(errors: list[Any]) -> Iterator[tuple[tuple[Any, ...], str]]:
    for error in errors:
        if error.child_errors:
            yield from _rules(error.child_errors)
        elif error.rule:
            constraint = "" if error.constraint is True else f" {error.constraint!r}"
            yield tuple(error.document_path), f"{error.rule}{constraint}"

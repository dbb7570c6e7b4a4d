"""Errors a user can cause, in three parts: what is wrong, what was found, what to do."""

import difflib
from collections.abc import Collection, Iterable, Iterator
from functools import partial


class GoodpartsError(Exception):
    """A mistake that the user can repair: printed without a stack trace, with exit code 2."""

    def __init__(self, what: str, *, found: str, do: str) -> None:
        self.what, self.found, self.do = what, found, do
        super().__init__(f"{what}\n  found: {found}\n  do:    {do}")

    def __reduce__(self) -> tuple[object, ...]:  # survives worker processes
        return partial(type(self), found=self.found, do=self.do), (self.what,)


class ConfigError(GoodpartsError):
    """A value, key or group name in the configuration is wrong."""


class DataError(GoodpartsError):
    """A data set, image or mask is missing, misplaced or unreadable."""


class DownloadError(GoodpartsError):
    """An archive or weight file could not be fetched or verified."""


class WeightsError(GoodpartsError):
    """Backbone weights are missing, incomplete or damaged."""


class SavedModelError(GoodpartsError):
    """A saved run or model file is missing, damaged, foreign or of another version."""


class TrainingError(GoodpartsError):
    """A training went wrong in a way that more epochs will not repair, or came to nothing."""


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it, latest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def root_of(error: BaseException) -> BaseException:
    """The user's own mistake inside wrappers such as hydra's InstantiationException."""
    return next((link for link in chain(error) if isinstance(link, GoodpartsError)), error)


def nearest(name: str, options: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` of `options` that look most like `name`, best first."""
    choices = {option.lower(): option for option in options}
    hits = difflib.get_close_matches(name.lower(), list(choices), n=count, cutoff=0.6)
    return [choices[hit] for hit in hits]


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """'Did you mean ...?' or, when nothing is close, the full list of valid names."""
    options = sorted(options)
    if close := nearest(name, options):
        return f"Did you mean {' or '.join(map(repr, close))}?"
    return f"Valid names: {', '.join(options)}."


def only(where: str, found: Iterable[object], known: Collection[str]) -> None:
    """ConfigError for the first name that is not known, with the nearest one that is."""
    for name in (str(name) for name in found if name not in known):
        what = f"{where}: {name!r} is not known or not supported."
        raise ConfigError(what, found=name, do=did_you_mean(name, known))

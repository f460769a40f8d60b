"""What tokens cost, by model: exact decimals, and nothing where the price is not known."""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, Field, ValidationError

from shared.infrastructure.balancing.accounting.usage import TokenUsage
from shared.infrastructure.resilience import ConfigurationError

Money = Annotated[Decimal, Field(ge=0, allow_inf_nan=False)]

_MILLION = Decimal(1_000_000)
# What a release adds to the name of its model: also month and day, or year and month, but no size.
_RELEASE = re.compile(
    r"[-@](\d{4}-\d{2}-\d{2}|20\d{6}|(?!1024)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"
    r"|2[3-9](0[1-9]|1[0-2])|latest)$"
)
_MAX_REMEMBERED = 1000

FurtherPrices = Callable[[str, TokenUsage], Decimal | None]
"""Asked for the cost of a model that the table does not have."""


class Price(BaseModel, frozen=True, extra="forbid"):
    """What one model costs, in any one currency per million tokens.

    Attributes:
        input: Tokens read; required, for any default would be wrong.
        output: Tokens written; required.
        cached_read: Tokens read out of the host's cache; None (default) is `input`.
        cache_write: Tokens put into it; None (default) is `input`.
        reasoning: Tokens thought and not said; None (default) is `output`.
        per_request: Of each attempt that was answered, whatever its tokens; 0.
    """

    input: Money
    output: Money
    cached_read: Money | None = None
    cache_write: Money | None = None
    reasoning: Money | None = None
    per_request: Money = Decimal(0)

    def cost(self, usage: TokenUsage) -> Decimal:
        """Return what so many tokens cost."""
        cached_read = self.input if self.cached_read is None else self.cached_read
        cache_write = self.input if self.cache_write is None else self.cache_write
        reasoning = self.output if self.reasoning is None else self.reasoning
        plain = max(0, usage.input - usage.cached_read - usage.cache_write)
        said = max(0, usage.output - usage.reasoning)
        tokens = (
            plain * self.input
            + usage.cached_read * cached_read
            + usage.cache_write * cache_write
            + said * self.output
            + usage.reasoning * reasoning
        )
        return tokens / _MILLION + self.per_request


class PriceTable:
    """Prices by model; one that it does not have is None, and never free.

    A model is looked up by its exact name, then without the date of its release, then by the
    longest pattern (`gpt-4o-*`, as `fnmatch` has it); each first as it stands and then without
    what qualifies it, `azure/eu/gpt-4o` as `eu/gpt-4o` and `gpt-4o`. Names of hosts qualify too:
    `local/*` is the price of whatever the host "local" serves.

    Args:
        prices: By model or pattern.
        further: Asked for models that are not in there; None (default) asks nobody.
    """

    def __init__(self, prices: Mapping[str, Price], further: FurtherPrices | None = None) -> None:
        self._exact = {name: price for name, price in prices.items() if "*" not in name}
        patterns = [(name, price) for name, price in prices.items() if "*" in name]
        self._patterns = sorted(patterns, key=lambda item: len(item[0]), reverse=True)
        self._further = further
        self._found: dict[str, Price | None] = {}

    @classmethod
    def of(cls, prices: Mapping[str, Price | Mapping[str, Any]]) -> PriceTable:
        """Make a table of plain values.

        Raises:
            ConfigurationError: A price is none.
        """
        return cls({name: _price(name, price) for name, price in prices.items()})

    @classmethod
    def from_file(cls, path: str | Path) -> PriceTable:
        """Read a table from a `.json` or `.toml` file: an object, or a TOML table, by model.

        Raises:
            ConfigurationError: The file is neither, or a price in it is none.
            OSError: It cannot be read.
        """
        path = Path(path)
        text = path.read_text(encoding="utf-8")
        try:
            if path.suffix == ".toml":
                values: Any = tomllib.loads(text, parse_float=Decimal)
            else:
                values = json.loads(text, parse_float=Decimal)
        except ValueError as exc:
            raise ConfigurationError(f"{path} holds no prices: {exc}") from exc
        if not isinstance(values, dict):
            raise ConfigurationError(f"{path} holds no object with prices by model")
        return cls.of(cast("dict[str, Any]", values))

    @classmethod
    def from_genai_prices(
        cls, own: Mapping[str, Price | Mapping[str, Any]] | None = None
    ) -> PriceTable:
        """Make a table of the public prices that the package `genai-prices` knows, in US dollars.

        Args:
            own: Prices that go before those.

        Raises:
            ConfigurationError: The package is not installed.
        """
        own = own or {}
        return cls({name: _price(name, price) for name, price in own.items()}, _genai_prices())

    def cost(self, model: str, usage: TokenUsage | Mapping[str, Any] | None) -> Decimal | None:
        """Return what an answer of `model` cost; None if its price, or its usage, is not known."""
        if not isinstance(usage, TokenUsage):
            usage = TokenUsage.of(usage)
            if usage is None:
                return None
        price = self.price_of(model)
        if price is not None:
            return price.cost(usage)
        return self._further(model, usage) if self._further else None

    def price_of(self, model: str) -> Price | None:
        """Return the price of a model that is in the table itself."""
        if model in self._found:
            return self._found[model]
        if len(self._found) >= _MAX_REMEMBERED:
            self._found.clear()
        price = self._found[model] = next(self._matches(model), None)
        return price

    def _matches(self, model: str) -> Iterator[Price]:
        parts = model.split("/")
        forms = ["/".join(parts[at:]) for at in range(len(parts))]
        for name in (*forms, *(_RELEASE.sub("", form) for form in forms)):
            if name in self._exact:
                yield self._exact[name]
        for form in forms:
            for pattern, price in self._patterns:
                if fnmatchcase(form, pattern):
                    yield price


def _price(name: str, price: Price | Mapping[str, Any]) -> Price:
    try:
        return Price.model_validate(price)
    except ValidationError as exc:
        raise ConfigurationError(f"the price of {name} is none: {exc}") from exc


def _genai_prices() -> FurtherPrices:
    try:
        package: Any = importlib.import_module("genai_prices")
    except ImportError as exc:
        raise ConfigurationError(
            "public prices need an optional dependency: pip install genai-prices"
        ) from exc

    def cost(model: str, usage: TokenUsage) -> Decimal | None:
        counted = package.Usage(
            input_tokens=usage.input,
            output_tokens=usage.output,
            cache_read_tokens=usage.cached_read,
            cache_write_tokens=usage.cache_write,
        )
        provider, _, name = model.rpartition("/")
        for reference, provider_id in ((name, provider), (name, None)):
            try:
                found = package.calc_price(counted, reference, provider_id=provider_id or None)
            except LookupError:
                continue
            total: Decimal = found.total_price
            return total
        return None

    return cost

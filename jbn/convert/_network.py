"""Shared by converters of whole networks: matching a model with a source, and the problems."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jbn._arguments import check_epsilon, check_flag
from jbn._inputs import describe
from jbn.convert._arrays import CountError, as_count
from jbn.convert._originals import Original, computes_the_same, other_epsilons
from jbn.convert._resnet_names import ResNetNames
from jbn.convert.common import ConversionError

Path = tuple[str, ...]


class Format(NamedTuple):
    """Suffixes of a source's keys, by our names of the arrays.

    `affine` is for convolutions and dense layers, `norm` for batch norms; `outputs_first` means
    that kernels are laid out as in torch; `epsilon` is that of the original's batch norms.
    """

    where: str
    affine: Mapping[str, str]
    norm: Mapping[str, str]
    outputs_first: bool = False
    epsilon: float = 1e-5


class Source(NamedTuple):
    """Names of a source's layers, and the attributes with which a model computes the same.

    `names` maps our layers to the source's. For a ResNet, they come from `table` and `root`.
    """

    form: Format
    names: Mapping[str, str]
    attributes: Mapping[str, Any]
    table: ResNetNames | None = None
    root: str = ""
    original: Original = Original()


class Options(NamedTuple):
    """What a caller says about a source; see the converters."""

    head: bool = True
    count: int | None = None
    epsilon: float | None = None
    activation: Callable[..., Any] | None = None


class Place(NamedTuple):
    """A model variable: path, shape and dtype, layer, name in the layer, key in the source."""

    path: Path
    like: Any
    module: str
    leaf: str
    key: str


def model_kind(where: str, model: Any, *wanted: str) -> str:
    """Return the name of the model's class, which has to be one of those wanted.

    Raises:
      TypeError: another model, or a function that makes one.
    """
    # Imported here, since the models need Flax, which converters of single layers do not.
    from jbn import models

    for name in wanted:
        if isinstance(model, getattr(models, name)):
            return name
    is_source = isinstance(model, Mapping) or hasattr(model, "state_dict")
    hint = " The model comes first, the source after it." if is_source else ""
    raise TypeError(
        f"{where}: expected `model` as a {' or '.join(wanted)} of jbn.models, got "
        f"{describe(model)}. Make one, such as jbn.models.resnet50(norm='batch').{hint}"
    )


# Kinds of problems in the order of the message, which lists at most `_MOST` of each.
_KINDS = ("", "missing", "unexpected", "misshapen")
_MOST = 10


class Network:
    """Matches a model's variables with a source's keys, and collects what does not fit.

    Without `head`, the last dense layer is left out.

    Raises:
      ConversionError: a model without batch norm, or an invalid count.
      TypeError: options of other types.
    """

    def __init__(self, model: Any, source: Source, options: Options, *, channels: int):
        from flax import linen
        from flax.traverse_util import flatten_dict

        self.model, self.source, self.form = model, source, source.form
        self.names, self.head = source.names, check_flag("head", options.head)
        self.problems: dict[str, list[str]] = {}  # By kind.
        self._check_options(options)
        # Small, but large enough for a pixel in every stage; variables do not depend on the size.
        images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
        modules: dict[tuple[str, ...], Any] = {}

        def see(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            modules[context.module.path] = context.module
            return call(*args, **kwargs)

        with linen.intercept_methods(see):
            init = functools.partial(model.init, training=False)
            self.target = flatten_dict(jax.eval_shape(init, jax.random.key(0), images))
        if not any(path[-1] == "mean" for path in self.target):
            self.problem(f"the model has norm={model.norm!r}, expected 'batch'. Make it with that.")
            self.finish()
        self._check_attributes(options)
        self._check_epsilons(options, modules)
        self._check_convolutions(modules)

    def _check_options(self, options: Options) -> None:
        if options.epsilon is not None:
            check_epsilon(options.epsilon)
        if not (options.activation is None or callable(options.activation)):
            raise TypeError(
                f"Expected `activation` as the source's nonlinearity, a function, got "
                f"{describe(options.activation)}. Pass one such as jax.nn.relu, or leave it out."
            )
        if options.count is not None:
            try:
                as_count(options.count)
            except CountError as error:
                self.problem(f"`count` is {error} Pass the number of batches absorbed.")
                self.finish()

    def _check_attributes(self, options: Options) -> None:
        for name, want in self.source.attributes.items():
            if name == "stride_in_1x1" and not self.model.bottleneck:
                continue
            got = getattr(self.model, name)
            if got != want:
                self.problem(
                    f"the model has {name}={got!r}, expected {want!r}, as the source's network "
                    f"computes. Make it with {name}={want!r}."
                )
        others = self.source.original.activations if options.activation is None else ()
        if others:
            self.problem(
                f"the source's network has {' and '.join(others)}, expected relu. Make the model "
                "with that activation, and also pass it as activation=."
            )
        elif not computes_the_same(self.model.activation, options.activation or jax.nn.relu):
            function = self.model.activation
            got = getattr(function, "__name__", repr(function))
            want = getattr(options.activation, "__name__", "relu")
            self.problem(
                f"the model has activation={got}, expected {want}, as the source's network "
                f"computes. Make it with that, or pass activation={got} if the source has it."
            )

    def _check_epsilons(self, options: Options, modules: Mapping[Path, Any]) -> None:
        ours = {
            path[-2]: float(modules[path[1:-1]].epsilon)
            for path in self.target
            if path[-1] == "mean" and hasattr(modules.get(path[1:-1]), "epsilon")
        }
        original, usual = self.source.original, self.form.epsilon
        for got, want, is_known in other_epsilons(
            ours, original, self.names, usual, options.epsilon
        ):
            say = "" if is_known else f", or pass epsilon={got} if the source's have that"
            self.problem(
                f"the model's batch norms have epsilon={got}, expected {want}, as the source's "
                f"network computes. Make it with norm=functools.partial(jbn.linen.BatchNorm, "
                f"epsilon={want}){say}."
            )

    def _check_convolutions(self, modules: Mapping[Path, Any]) -> None:
        original = self.source.original
        if original.dilated:
            self.problem(
                f"the source's {original.dilated[0]!r} is dilated, the model's convolutions are "
                "not. Pass a network without dilations."
            )
        if any("stride_in_1x1=" in text for texts in self.problems.values() for text in texts):
            return  # This problem is the cause; every stage would be listed.
        for path, module in modules.items():
            theirs = self.names.get(path[-1] if path else "", "")
            got = original.strides.get(theirs)
            if got is not None and tuple(got) != tuple(module.strides):
                self.problem(
                    f"the source's {theirs!r} has stride {tuple(got)}, expected "
                    f"{tuple(module.strides)}, that of the model's {path[-1]!r}. Make the model "
                    "with the source's stem and stride_in_1x1."
                )

    def problem(self, text: str, kind: str = "") -> None:
        """Add a problem of the kind "missing", "unexpected", "misshapen", or "" for all others."""
        self.problems.setdefault(kind, []).append(f"{self.form.where}: {text}")

    def finish(self, cause: str = "") -> None:
        """Raise an error if there are problems; its message begins with the likely cause."""
        if not self.problems:
            return
        shown = [f"{self.form.where}, the likely cause: {cause}"] if cause else []
        problems: list[str] = []
        for kind in _KINDS:
            texts = self.problems.get(kind, [])
            problems += texts
            shown += texts[:_MOST]
            if len(texts) > _MOST:
                of_kind = f" {kind}" if kind else ""
                shown.append(f"{self.form.where}: and {len(texts) - _MOST} more{of_kind}.")
        raise ConversionError(problems, "network", shown=shown)

    def places(self) -> Iterator[Place]:
        """Find the source's key for every variable; a variable without one is a problem."""
        for path, like in self.target.items():
            module, leaf = path[1], path[-1]
            ends = self.form.norm if module.endswith("_norm") else self.form.affine
            if module == "output" and not self.head:
                continue
            if module not in self.names or len(path) != 3 or leaf not in (*ends, "count"):
                self.problem(f"the model has {'/'.join(path)!r}, the source's network has not.")
            else:
                # A format without a count has no suffix for it.
                yield Place(path, like, module, leaf, self.names[module] + ends.get(leaf, ""))

    def biases(self) -> Iterator[tuple[str, Path]]:
        """Find the source's keys of biases that our convolutions lack, and the means they go to."""
        for module, theirs in self.names.items():
            mean = ("batch_stats", f"{module}_norm", "mean")
            if mean in self.target and ("params", module, "bias") not in self.target:
                yield theirs + self.form.affine["bias"], mean

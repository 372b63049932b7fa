"""The settings of a text model's training, and the check of settings without effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..optim import SGD, Adagrad, Adam, AdamW, RMSprop
from ..validation import number, positive, probability
from .model import TextModel
from .vocabulary import Words

OPTIMIZERS = {"adam": Adam, "adamw": AdamW, "rmsprop": RMSprop, "adagrad": Adagrad, "sgd": SGD}
LEVELS = ("char", "word")
LEARNING_RATES = {"adam": 2e-3, "adamw": 2e-3, "rmsprop": 2e-3, "adagrad": 2e-2, "sgd": 1.0}


def setting(default: Any, meaning: str, kind: type | None = None) -> Any:
    return field(default=default, metadata={"help": meaning, "type": kind or type(default)})


@dataclass(frozen=True)
class Settings:
    """The settings of a training; the command's options and defaults derive from them.

    Raises
    ------
    ValueError, TypeError
        A value is out of its range; the message names it.
    """

    level: str = setting("char", "what the text is cut into: char or word")
    words: int = setting(10_000, "with level word: entries of the vocabulary at most, the most frequent words")
    min_count: int = setting(2, "with level word: words that the text has less often count as the unknown word")
    hidden: int = setting(256, "hidden units of each layer")
    layers: int = setting(1, "layers")
    dropout: float = setting(0.0, "share of outputs dropped between layers")
    seq_len: int = setting(64, "tokens through which gradients flow back")
    batch: int = setting(32, "streams into which the text is cut")
    optimizer: str = setting("adam", f"one of {', '.join(OPTIMIZERS)}")
    lr: float | None = setting(None, f"learning rate; by optimizer {LEARNING_RATES} unless given", float)
    decay: float = setting(0.0, "share of the steps, the last ones, in which lr falls in a straight line towards 0")
    clip: float = setting(1.0, "largest norm of all gradients together; 0 for no clipping")
    steps: int = setting(2000, "steps in all, those before --resume included")
    seed: int = setting(0, "seed of weights and dropout")
    backend: str = setting("auto", "backend; see `fastlstm info`")
    evaluate_every: int = setting(250, "steps between measurements of held-out perplexity; 0 for none")
    checkpoint_every: int = setting(500, "steps between checkpoints; 0 for one at the end")

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {self.level!r}")
        positive(self.words, "words", 2)
        for name in ("hidden", "layers", "seq_len", "batch", "steps", "min_count"):
            positive(getattr(self, name), name)
        for name in ("seed", "evaluate_every", "checkpoint_every"):
            positive(getattr(self, name), name, 0)
        number(self.clip, "clip")
        for name in ("dropout", "decay"):
            probability(getattr(self, name), name)
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if self.lr is not None:
            number(self.lr, "lr")

    @property
    def base_lr(self) -> float:
        """The learning rate before decay."""
        return LEARNING_RATES[self.optimizer] if self.lr is None else self.lr

    def lr_factor(self, taken: int) -> float:
        """The factor of the learning rate after `taken` steps, for `schedules.LambdaLR`."""
        falling = self.steps * self.decay
        return min(1.0, max(0, self.steps - taken) / falling) if falling else 1.0


# Settings that may differ between a run and its continuation. The others determine the model and its place in the text.
CHANGEABLE = frozenset({"lr", "decay", "clip", "steps", "backend", "evaluate_every", "checkpoint_every"})


def fitted(settings: Settings, model: TextModel) -> Settings:
    """The settings of the training of a model that exists, or ValueError where they ask for another one."""
    default = {f.name: f.default for f in fields(Settings)}
    level = "word" if isinstance(model.tokens, Words) else "char"
    has = {"hidden": model.lstm.hidden_size, "layers": model.lstm.num_layers, "backend": model.lstm.backend}
    has |= {"level": level}
    for name, value in has.items():
        if getattr(settings, name) not in (default[name], value):
            raise ValueError(
                f"the settings have {name} {getattr(settings, name)}, but the model has {value}: "
                f"leave {name} out of the settings, or give no model"
            )
    for name in ("seed", "words", "min_count"):
        if getattr(settings, name) != default[name]:
            raise ValueError(
                f"{name} {getattr(settings, name)} has no effect on a model that exists: give it to the model instead"
            )
    sizes = replace(settings, hidden=model.lstm.hidden_size, layers=model.lstm.num_layers, level=level)
    return sizes if settings.dropout != default["dropout"] else replace(sizes, dropout=model.lstm.dropout)


def without_effect(s: Settings, model: TextModel, taken: int = 0) -> Iterator[str]:
    """A sentence for each setting that has no effect on the steps that follow so many taken."""
    if taken >= s.steps:
        yield f"nothing was left to do: {taken} steps have been taken, and steps is {s.steps}. Give more to go on"
        return
    if s.dropout and s.layers == 1:
        yield (
            f"dropout {s.dropout:g} has no effect: it drops outputs between layers, and layers is 1. "
            "Give layers 2 or more, or dropout 0"
        )
    if s.lr == 0:
        yield "lr is 0, so that nothing is learnt"
    if s.decay > 0 and s.steps * s.decay <= 1:
        yield f"decay {s.decay:g} has no effect: of {s.steps} steps that is one at most. Give more of either"
    for name in ("evaluate_every", "checkpoint_every"):
        every = getattr(s, name)
        chosen = every and every != Settings.__dataclass_fields__[name].default
        if chosen and s.steps // every == taken // every:
            yield f"{name} {every} has no effect: no such step lies between steps {taken} and {s.steps}"
    for name in ("words", "min_count"):
        if s.level == "char" and getattr(s, name) != Settings.__dataclass_fields__[name].default:
            yield f"{name} {getattr(s, name)} has no effect: it is for words, and level is char. Give level word"
    if len(model.tokens.known) == 1:
        yield f"the text has only the {model.tokens.unit} {model.tokens.known[0]!r}, so that there is nothing to learn"


def changed(before: Settings, given: Mapping[str, Any]) -> Settings:
    """The settings of a continued run, or ValueError."""
    fixed = {name: value for name, value in given.items() if name not in CHANGEABLE and value != getattr(before, name)}
    if fixed:
        asked = ", ".join(f"{name} {value}" for name, value in fixed.items())
        had = ", ".join(f"{name} {getattr(before, name)}" for name in fixed)
        raise ValueError(f"a resumed run cannot have {asked}: it began with {had}")
    return replace(before, **given)

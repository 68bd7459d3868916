"""What is measured, apart from when: the base of all lenses."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from lit_papers.lens.batches import Unpack
from lit_papers.lens.routes import Call
from lit_papers.lens.subject import Moment, Reads, Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = dict[str, float | list[float]]


class Lens(ABC):
    """Looks at a network and its data at one moment and returns plain numbers.

    It knows no Trainer, so that the same lens serves in a notebook, on checkpoints and inside training. One subclass a
    measurement, in the ``lens.py`` of its paper. To use one, call it with a network and its data::

        numbers = CollapseLens()(model, loader)

    Attributes:
        name: prefix of keys and name of the figure, until a watch gives another.
        reads: which data it is about, unless told otherwise; None if about none.
    """

    name: str
    reads: Reads = "train"

    @abstractmethod
    def check(self, subject: Subject) -> Any:
        """Find out whether the subject can be looked at, before anything is lost, and what stays the same in a fit.

        Returns:
            What `look` needs and what does not change: samples, an optimum, keys of gatherings.

        Raises:
            NotApplicable: it cannot; the message has the reason and the cure.
        """

    @abstractmethod
    def look(self, moment: Moment, prepared: Any, history: Sequence[Mapping[str, Any]]) -> Numbers:
        """The numbers of this moment, the same on every process.

        Args:
            moment: the subject now.
            prepared: what `check` returned.
            history: what was found before, of the same fit or the same network.

        Raises:
            ValueError: they do not exist now (a network that has diverged); what is kept instead is `unknown`.
        """

    def unknown(self, prepared: Any) -> Numbers:
        """The keys of `look`, with NaN: what is kept where nothing can be measured."""
        return {}

    @abstractmethod
    def figure(self, history: Sequence[Mapping[str, Any]]) -> "Figure":
        """A history as a figure.

        Args:
            history: at least one entry, each with ``epoch``, ``step`` and what `look` returned.
        """

    def __call__(
        self,
        network: nn.Module,
        loader: Any = None,
        *,
        call: Call | None = None,
        unpack: Unpack | None = None,
        classifier: str | nn.Module | None = None,
        max_batches: int | None = None,
        copy: bool = True,
    ) -> Numbers:
        """Check and look in one, without a Trainer; the arguments are those of `Subject`.

        Raises:
            NotApplicable: it does not fit.
            ValueError: there are no such numbers.
        """
        subject = Subject(
            network,
            loader,
            reads=self.reads,
            call=call,
            unpack=unpack,
            classifier=classifier,
            max_batches=max_batches,
            copy=copy,
        )
        return self.look(subject.moment(), self.check(subject), [])

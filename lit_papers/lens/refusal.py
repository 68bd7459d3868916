"""How a lens says that it cannot be used here, before anything is lost."""


class NotApplicable(ValueError):  # noqa: N818  # the name says what it is to the caller: an answer, not an accident
    """A measurement does not fit this network or these data; the message has the reason and the cure.

    >>> raise NotApplicable("there is no validation set: pass `dataloader`")
    Traceback (most recent call last):
    lit_papers.lens.refusal.NotApplicable: there is no validation set: pass `dataloader`
    """

"""The process of one trial: ``python -m lit_papers.tuning.trial fit ...``, started by the search.

It is ``python -m lit_papers fit ...`` with one more callback, which tells the study how the metric goes and stops a
trial that falls behind. The processes that a strategy starts enter here too.
"""

import sys

from lit_papers import cli
from lit_papers.trials.processes import end_with_parent
from lit_papers.tuning.assignment import Assignment


def main() -> int:
    """Train one trial; the exit status is that of ``fit``."""
    from lit_papers.tuning.report import ReportToStudy  # imports Lightning, which `end_with_parent` shall not wait for

    return cli.main(callbacks=[ReportToStudy(Assignment.from_environment())])


if __name__ == "__main__":
    end_with_parent()
    status = main()
    sys.exit(status)  # looked up now, as in `lit_papers.__main__`
